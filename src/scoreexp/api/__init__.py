"""What Python users call: ``scoreexp.denoise``, ``restore``, ``sample`` and ``train``, without Hydra."""
