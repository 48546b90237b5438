"""The paper's networks for 28 × 28 and 32 × 32 images; one family a file, logits out.

Every network takes a width multiplier, so that one experiment runs on two cores (narrow) and on
a GPU (full width). Initial weights come from torch's global generator: `torch.manual_seed`
before the call fixes them.
"""

from conescope.models.lenet import LeNet5
from conescope.models.resnet import ResNet20
from conescope.models.vgg import VGG16

__all__ = ["VGG16", "LeNet5", "ResNet20"]
