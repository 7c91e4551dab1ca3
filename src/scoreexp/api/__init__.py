"""What Python users call: ``scoreexp.denoise``, ``scoreexp.sample`` and ``scoreexp.train``, without Hydra."""
