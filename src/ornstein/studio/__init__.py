"""The studio: a local web page over training, sampling, noise, face swaps and likelihoods; needs the extra `studio`."""
