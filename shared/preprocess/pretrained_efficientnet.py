"""EfficientNet-Lite0 with its batch norm folded away: the only door to efficientnet_lite_pytorch.

in        the checkpoint out of its package
out       a network from [B, 3, S, S] to [B, 1280], of plain convolutions with biases
relies on the running statistics that come with the weights: public numbers from ImageNet, never from rows that pass
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.errors import ModelError
from shared.preprocess.pretrained import Checkpoint

EFFICIENTNET_WIDTH = 1280


class Inverted(nn.Module):
    """One block: widened, looked at channel by channel, narrowed; added to what came in where the shapes are equal.

    Source: Sandler et al. 2018, arXiv:1801.04381, section 3.4.
    """

    def __init__(self, layers: nn.Sequential, *, adds: bool) -> None:
        super().__init__()
        self.layers, self.adds = layers, adds

    def forward(self, values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D P Q"]:
        """What the block makes of the picture."""
        made: Tensor = self.layers(values)
        return made + values if self.adds else made


class EfficientNet(nn.Module):
    """EfficientNet-Lite0's features and their mean over places; rows are independent, in training too.

    Source: Tan and Le 2019, arXiv:1905.11946, in the Lite form (no squeeze-and-excitation, ReLU6).
    """

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B E"]:
        """The vector of each picture."""
        features: Tensor = self.layers(pixels)
        return features.mean(dim=(2, 3))


def efficientnet(checkpoint: Checkpoint) -> EfficientNet:
    """The network with a copy of the weights for its caller; under torch.device("meta") with their shapes only.

    Raises:
        ModelError: the package with the code is not installed, or the weights are those of another network.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet as Packaged
    except ImportError:
        raise ModelError(
            "the package with this network is not installed; install it with: "
            "pip install --no-deps efficientnet-lite-pytorch==0.1.0"
        ) from None
    packaged: nn.Module = Packaged.from_name("efficientnet-lite0")
    if torch.get_default_device().type != "meta":
        try:
            packaged.load_state_dict(torch.load(checkpoint.path, map_location="cpu", weights_only=True))
        except (RuntimeError, OSError) as error:
            raise ModelError(f"{checkpoint.path}: not the weights of EfficientNet-Lite0: {error}") from None
    stem, head = (
        nn.Sequential(*_folded(packaged.get_submodule(conv), packaged.get_submodule(norm)), nn.ReLU6())
        for conv, norm in (("_conv_stem", "_bn0"), ("_conv_head", "_bn1"))
    )
    blocks = nn.Sequential(*(_block(block) for block in packaged.get_submodule("_blocks").children()))
    network = EfficientNet(nn.Sequential(stem, blocks, head))
    network.train(False)
    return network


def _block(block: nn.Module) -> Inverted:
    names = [("_expand_conv", "_bn0")] if hasattr(block, "_expand_conv") else []
    names += [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
    layers = nn.Sequential()
    for conv, norm in names:
        layers.extend(_folded(block.get_submodule(conv), block.get_submodule(norm)))
        layers.append(nn.ReLU6())
    del layers[-1]
    told = vars(block)["_block_args"]
    return Inverted(layers, adds=bool(told.id_skip and told.stride == 1 and told.input_filters == told.output_filters))


def _folded(conv: nn.Module, norm: nn.Module) -> Iterator[nn.Module]:
    """A convolution and the batch norm behind it as padding and one convolution with a bias; the same to rounding."""
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        raise ModelError("efficientnet-lite-pytorch is not as this code knows it; install version 0.1.0")
    padding = getattr(conv, "static_padding", None)
    if isinstance(padding, nn.ZeroPad2d):
        yield nn.ZeroPad2d(padding.padding)
    scale = norm.weight.detach() / (norm.get_buffer("running_var") + norm.eps).sqrt()
    one = nn.Conv2d(
        conv.in_channels, conv.out_channels, (conv.kernel_size[0], conv.kernel_size[1]),
        stride=(conv.stride[0], conv.stride[1]), groups=conv.groups, device=conv.weight.device,
    )  # fmt: skip
    one.weight = nn.Parameter(conv.weight.detach() * scale[:, None, None, None])
    one.bias = nn.Parameter(norm.bias.detach() - norm.get_buffer("running_mean") * scale)
    yield one
