"""What a model knows: likelihoods and checks of a trained score model."""
