"""The measurements of ``scoreexp.evaluate``, by what is measured: denoised images, the model itself, its samples."""
