"""The convolutions that are timed on a GPU, and what the GPU could do."""

from dataclasses import dataclass

MEMORY, TENSOR, PRODUCTS = 4.3e12, 911e12, {"strict": 6, "fast": 3, "tf32": 2}
"""Bytes and bf16 operations a second, measured on an H200, and how many bf16-sized products a product costs."""


@dataclass(frozen=True)
class Shape:
    """A convolution: images, channels, image size, filters, filter size, stride, padding, groups."""

    name: str
    n: int
    c: int
    h: int
    k: int
    r: int
    stride: int = 1
    groups: int = 1

    @property
    def output(self) -> int:
        """Rows, and columns, of the result."""
        return (self.h + 2 * (self.r // 2) - self.r) // self.stride + 1

    @property
    def operations(self) -> float:
        """A product and a sum for each weight that an output reads."""
        return 2.0 * self.n * self.k * self.output**2 * self.c // self.groups * self.r**2

    @property
    def traffic(self) -> int:
        """Bytes of x and y, each moved once."""
        return 4 * self.n * (self.c * self.h**2 + self.k * self.output**2)

    @property
    def options(self) -> dict[str, int]:
        return {"stride": self.stride, "padding": self.r // 2, "groups": self.groups}

    @property
    def text(self) -> str:
        step = f" /{self.stride}" if self.stride > 1 else ""
        depth = " depthwise" if self.groups > 1 else ""
        return f"{self.n}x{self.c}x{self.h}x{self.h} -> {self.k}, {self.r}x{self.r}{step}{depth}"


SHAPES = (
    Shape("kernels", 32, 64, 56, 64, 3),
    Shape("kernels", 16, 128, 28, 128, 3),
    Shape("kernels", 32, 512, 14, 512, 1),
    Shape("kernels", 256, 32, 14, 64, 3),
    Shape("kernels", 256, 1, 28, 32, 3),
    Shape("kernels", 16, 256, 32, 256, 3, groups=256),
    Shape("ResNet-18", 32, 3, 224, 64, 7, 2),
    Shape("ResNet-18", 32, 64, 56, 128, 3, 2),
    Shape("ResNet-18", 32, 64, 56, 128, 1, 2),
    Shape("ResNet-18", 32, 128, 28, 128, 3),
    Shape("ResNet-18", 32, 128, 28, 256, 3, 2),
    Shape("ResNet-18", 32, 256, 14, 256, 3),
    Shape("ResNet-18", 32, 256, 14, 512, 3, 2),
    Shape("ResNet-18", 32, 512, 7, 512, 3),
    Shape("MobileNetV1", 32, 3, 224, 32, 3, 2),
    Shape("MobileNetV1", 32, 32, 112, 32, 3, groups=32),
    Shape("MobileNetV1", 32, 32, 112, 64, 1),
    Shape("MobileNetV1", 32, 64, 112, 64, 3, 2, groups=64),
    Shape("MobileNetV1", 32, 64, 56, 128, 1),
    Shape("MobileNetV1", 32, 128, 56, 128, 3, groups=128),
    Shape("MobileNetV1", 32, 256, 28, 256, 1),
    Shape("MobileNetV1", 32, 512, 14, 512, 3, groups=512),
    Shape("MobileNetV1", 32, 512, 7, 1024, 1),
)
