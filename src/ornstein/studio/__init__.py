"""The studio: a local web page over training, sampling, noise, face swaps and likelihoods; needs the extra `studio`."""

import os

from ornstein.extras import require

# Gradio reads these when it is imported: it then sends no statistics and requests nothing from the network.
os.environ.update({"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_SSR_MODE": "False"})
require("gradio", "studio", "the studio")
