"""The measurements of ``scoreexp.evaluate``, by what is measured: denoised pictures, the model itself, its samples."""
