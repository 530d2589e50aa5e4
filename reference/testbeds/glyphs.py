"""Grey images of Unicode glyphs, each under its own transformation, blur, noise, clutter and occlusion.

A class is a code point; images of a class differ in the face, too. There are hundreds of classes, so that nets can be
tested on classes they were never trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from reference.testbeds.glyph_renders import FACES, renders
from reference.testbeds.seeding import generator

# code points that look different, in the order of a hash: `glyph_renders.distinct(glyph_renders.candidates())`
CLASSES: tuple[int, ...] = (
    0x00FB, 0x0414, 0x042D, 0x026D, 0x01C0, 0x00DA, 0x0457, 0x03C3, 0x0283, 0x03F1, 0x0447, 0x040A, 0x2566,
    0x0439, 0x255E, 0x039C, 0x03A9, 0x0172, 0x007B, 0x040F, 0x0472, 0x0440, 0x0167, 0x03CC, 0x03D8, 0x00DD,
    0x005C, 0x003A, 0x0039, 0x00A7, 0x03AC, 0x03A6, 0x0056, 0x0046, 0x01BA, 0x2021, 0x0022, 0x0392, 0x00D7,
    0x0299, 0x0077, 0x011E, 0x005D, 0x025B, 0x0156, 0x010B, 0x00C5, 0x0071, 0x03C6, 0x0119, 0x0293, 0x0111,
    0x00E8, 0x0280, 0x043F, 0x00B1, 0x012A, 0x01AF, 0x0453, 0x0490, 0x027C, 0x0161, 0x0390, 0x0389, 0x045C,
    0x0050, 0x0402, 0x0112, 0x03D0, 0x0141, 0x0278, 0x00D0, 0x0173, 0x00AC, 0x0068, 0x0281, 0x045E, 0x2557,
    0x03E0, 0x0257, 0x03DE, 0x01FF, 0x03D6, 0x0058, 0x00E6, 0x043E, 0x1E83, 0x00A5, 0x0037, 0x002E, 0x00E7,
    0x0065, 0x03B4, 0x0258, 0x0255, 0x044E, 0x029B, 0x002A, 0x0403, 0x03DF, 0x0136, 0x0455, 0xFB02, 0x007A,
    0x002B, 0x010E, 0x2212, 0x0421, 0x0033, 0x2550, 0x02A3, 0x0388, 0x00FE, 0x0272, 0x00A2, 0x01C2, 0x255C,
    0x027F, 0x029A, 0x03E1, 0x0256, 0x0422, 0x03B3, 0x044A, 0x0260, 0x040C, 0x00E3, 0x042B, 0x2568, 0x0462,
    0x00D8, 0x00B0, 0x043B, 0x041D, 0x014B, 0x003F, 0x2423, 0x252C, 0x0152, 0x250C, 0x017A, 0x01FD, 0x00A9,
    0x00C6, 0x0079, 0x0295, 0x03B0, 0x0024, 0x044B, 0x0165, 0x003C, 0x2564, 0x003E, 0x03CE, 0x0252, 0x0133,
    0x1E80, 0x0446, 0x03C7, 0x2569, 0x011D, 0x0254, 0x2202, 0x2026, 0x2010, 0x00F0, 0x0269, 0x0023, 0x2122,
    0x0154, 0x03B6, 0x2552, 0x00BA, 0x0291, 0x0118, 0x0034, 0x0125, 0x0145, 0x01C1, 0x015C, 0x00D6, 0x03D1,
    0x01AD, 0x03D2, 0x0449, 0x041A, 0x03BC, 0x0038, 0x0452, 0x0270, 0x0026, 0x0031, 0x0448, 0x0047, 0x0459,
    0x0199, 0x2518, 0x028F, 0x025A, 0x02A6, 0x0282, 0x0290, 0x0195, 0x0264, 0x0394, 0x0106, 0x0294, 0x2565,
    0x0188, 0x01AB, 0x038C, 0x013B, 0x0041, 0x002F, 0x03C2, 0x0463, 0x0032, 0x2116, 0x0029, 0x00DF, 0x255D,
    0x2555, 0x0105, 0x039D, 0x00B6, 0x0279, 0x2567, 0x2556, 0x042F, 0x00BF, 0x0273, 0x03B2, 0x0104, 0x0287,
    0x0061, 0x0135, 0x0025, 0x025F, 0x255F, 0x03A8, 0x03BB, 0x0040, 0x0149, 0x01BE, 0x03C4, 0x0436, 0x03B1,
    0x2559, 0x0122, 0x002C, 0x017D, 0x0138, 0x01B0, 0x2554, 0x02A4, 0x029E, 0x043C, 0x03C5, 0x0164, 0x2514,
    0x025D, 0x026C, 0x0147, 0x0297, 0x201E, 0x025E, 0x029D, 0x01FE, 0x253C, 0x20AC, 0x044C, 0x00DE, 0x2524,
    0x2534, 0x0289, 0x00A3, 0x003B, 0x03CB, 0x00AA, 0x0028, 0x03BE, 0x03BD, 0x2031, 0x0144, 0x0277, 0x0027,
    0x027E, 0x015E, 0x0267, 0x028D, 0x2020, 0x0274, 0x2510, 0x02A7, 0x041B, 0x0253, 0x01FC, 0x00A4, 0x027B,
    0x0157, 0x040B, 0x255A, 0x0250, 0x2030, 0x2558, 0x00AE, 0x0139, 0x03AE, 0x02A8, 0x2563, 0x0263, 0x0259,
    0x0137, 0x007E, 0x03DA, 0x0271, 0x0268, 0x042C, 0x00E5, 0x0427, 0x2553, 0x0124, 0x03AD, 0x255B, 0x028E,
    0x038E, 0x0035, 0x0146, 0x00F7, 0x0285, 0x03F0, 0x039E, 0x026E, 0x03A3, 0x256C, 0x0454,
)  # fmt: skip
_CHUNK = 1024


@dataclass(frozen=True)
class Look:
    """How far images stray from the clean glyph; every value is a strength, 0 is none.

    The angle is uniform within ±`rotation_deg`, the factor of the size within 1 ± `scale`, the slant within ±`shear`,
    the place within ±`shift` of the side. `blur_px` is the largest standard deviation of the Gaussian blur, uniform
    from 0. `noise` is the standard deviation of Gaussian pixel noise, not clipped. `clutter` is the ink of two more
    glyphs that reach into the image from its rim, `occlusion` the side, over the image's, of a grey square that hides
    part of it.
    """

    rotation_deg: float = 12.0
    scale: float = 0.15
    shear: float = 0.15
    shift: float = 0.08
    blur_px: float = 0.8
    noise: float = 0.2
    clutter: float = 0.5
    occlusion: float = 0.25


CLEAN = Look(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
HARD = Look()


def glyphs(
    classes: Sequence[int], per_class: int, seed: int, part: str = "train", look: Look = HARD, side: int = 32
) -> tuple[Tensor, Tensor]:
    """`per_class` images of every class: float32 [n, 1, side, side], ink 1 on 0, and labels int64 [n], shuffled.

    `classes` are positions in CLASSES, a range or any sequence of them; a label is the position in `classes`. Parts
    ("train", "val", "test", any word) and seeds are independent draws, of faces, too. Equal arguments, equal images.
    """
    code_points = tuple(CLASSES[index] for index in classes)
    random = generator("glyphs", part, seed, side)
    labels = torch.arange(len(code_points)).repeat_interleave(per_class)
    labels = labels[torch.randperm(len(labels), generator=random)]
    clean = renders(code_points, side)
    drawn = [_draw(clean, rows, look, random) for rows in labels.split(_CHUNK)]
    return torch.cat(drawn) if drawn else torch.zeros(0, 1, side, side), labels


def _draw(clean: Tensor, labels: Tensor, look: Look, random: torch.Generator) -> Tensor:
    """One image [n, 1, side, side] for each label; `clean` [classes, faces, side, side]."""
    count, side = len(labels), clean.shape[-1]
    x = _moved(_picked(clean, labels, random), look, _uniform((2, count), look.shift, random), random)
    if look.clutter:
        for _ in range(2):
            others = torch.randint(len(clean), (count,), generator=random)
            angle = _uniform((count,), torch.pi, random)
            rim = 0.62 * torch.stack([angle.cos(), angle.sin()])
            x = torch.maximum(x, look.clutter * _moved(_picked(clean, others, random), look, rim, random))
    if look.blur_px:
        x = _blurred(x, look.blur_px * torch.rand((count, 1, 1, 1), generator=random))
    if look.occlusion:
        x = _occluded(x, round(look.occlusion * side), random)
    if look.noise:
        x = x + look.noise * torch.empty_like(x).normal_(generator=random)
    return x


def _picked(clean: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
    faces = torch.randint(len(FACES), labels.shape, generator=random)
    return clean[labels, faces][:, None]


def _moved(x: Tensor, look: Look, shift: Tensor, random: torch.Generator) -> Tensor:
    """Each image turned, scaled and slanted at random and moved by `shift` [2, n], in sides."""
    count = len(x)
    angle = _uniform((count,), look.rotation_deg * torch.pi / 180, random)
    size = 1 + _uniform((count,), look.scale, random)
    slant = _uniform((count,), look.shear, random)
    cos, sin = angle.cos() / size, angle.sin() / size
    linear = torch.stack([cos, sin + slant * cos, -sin, cos - slant * sin], 1).view(count, 2, 2)
    # the grid asks where a pixel comes from, in units of half a side
    back = -2 * linear @ shift.T[:, :, None]
    grid = affine_grid(torch.cat([linear, back], 2), list(x.shape), align_corners=False)
    return grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blurred(x: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur, separable, each image with its own `sigma_px` [n, 1, 1, 1]."""
    radius = max(1, round(2.5 * sigma_px.max().item()))
    weights = [torch.exp(-0.5 * (step / sigma_px.clamp_min(1e-3)) ** 2) for step in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    side = x.shape[-1]
    for axis, margins in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        wide = pad(x, margins)
        x = sum(
            weights[abs(step)] / total * wide.narrow(axis, radius + step, side) for step in range(-radius, radius + 1)
        )
    return x


def _occluded(x: Tensor, length: int, random: torch.Generator) -> Tensor:
    """A square of `length` pixels of one random grey at a random place, wholly inside."""
    count, side = len(x), x.shape[-1]
    corner = torch.randint(side - length + 1, (2, count, 1), generator=random)
    inside = (torch.arange(side) >= corner) & (torch.arange(side) < corner + length)
    hidden = (inside[0, :, :, None] & inside[1, :, None, :])[:, None]
    grey = torch.rand((count, 1, 1, 1), generator=random)
    return torch.where(hidden, grey, x)


def _uniform(shape: tuple[int, ...], bound: float, random: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=random) - 1) * bound
