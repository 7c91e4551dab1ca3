"""Standard data sets out of ordinary packages, one script each; see docs/data.md."""
