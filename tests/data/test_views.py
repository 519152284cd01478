import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from beit.data.decoding.decode import pixels_of
from beit.data.views import views
from beit.data.views.draws import Key, crop_box
from beit.data.views.views import ViewSettings, make_views
from beit.errors import UserError
from oracles.picture_zoo import scene

KEY = Key(3, 1, 4)


def _picture() -> Image.Image:
    chance = np.random.default_rng(0)
    rough = Image.fromarray(chance.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    return rough.resize((400, 300), Image.Resampling.BICUBIC)


def _by_pillow(image: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Tensor:
    resized = image.resize((size[1], size[0]), how)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _apart(one: Tensor | None, other: Tensor) -> int:
    assert one is not None and one.shape == other.shape and one.dtype == torch.uint8
    return int((one.int() - other.int()).abs().max())


def test_both_views_show_the_drawn_crop_as_pillow_would() -> None:
    image, settings = _picture(), ViewSettings((224, 160), (112, 80))
    patch_view, token_view = make_views(image, settings, KEY)
    box = crop_box(KEY.generator("crop"), (300, 400), settings.scale, settings.ratio)
    crop = image.crop(box)
    assert _apart(patch_view, _by_pillow(crop, (224, 160), Image.Resampling.BICUBIC)) <= 2
    assert _apart(token_view, _by_pillow(crop, (112, 80), Image.Resampling.LANCZOS)) <= 2


def test_views_are_torchvisions_of_pillows_crop_to_the_last_bit() -> None:
    """Runs and token banks that began before hold these pixels, however they are made now."""
    image, settings = _picture(), ViewSettings((224, 160), (112, 80))
    for index in range(6):
        key = Key(3, 1, index)
        box = crop_box(key.generator("crop"), (300, 400), settings.scale, settings.ratio)
        crop = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1).contiguous()
        bicubic = functional.resize(crop, [224, 160], InterpolationMode.BICUBIC)
        lanczos = functional.resize(crop, [112, 80], InterpolationMode.LANCZOS)
        for picture in (image, pixels_of(image), pixels_of(image).contiguous()):
            patch_view, token_view = make_views(picture, settings, key)
            assert patch_view is not None and torch.equal(patch_view, bicubic)
            assert token_view is not None and torch.equal(token_view, lanczos)


def test_an_older_torch_gets_lanczos_from_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ViewSettings(None, (112, 112))
    _, native = make_views(_picture(), settings, KEY)
    monkeypatch.setattr(views, "_native_lanczos", lambda: False)
    _, pillow = make_views(_picture(), settings, KEY)
    assert pillow is not None and _apart(native, pillow) <= 2


def test_the_evaluation_view_is_the_middle_and_draws_nothing() -> None:
    settings = ViewSettings((64, 64), None, random=False, centre_share=0.5)
    one, _ = make_views(_picture(), settings, KEY)
    other, _ = make_views(_picture(), settings, Key(9, 9, 9))
    assert one is not None and other is not None and torch.equal(one, other)
    middle = _picture().crop((125, 75, 275, 225))
    assert _apart(one, _by_pillow(middle, (64, 64), Image.Resampling.BICUBIC)) <= 2


def test_a_view_of_the_pictures_own_size_is_the_picture() -> None:
    image = Image.fromarray(scene(16, 16))
    settings = ViewSettings((16, 16), (16, 16), random=False, centre_share=1.0)
    for view in make_views(image, settings, KEY):
        assert view is not None
        assert torch.equal(view.permute(1, 2, 0), torch.from_numpy(scene(16, 16)))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_tiny_and_thin_pictures_give_views(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    for random in (True, False):
        settings = ViewSettings((32, 32), (16, 16), random=random)
        for view in make_views(image, settings, KEY):
            assert view is not None and view[:, 0, 0].tolist() == [10, 20, 30]
            assert int(view.float().std(dim=(1, 2)).max()) == 0


def test_impossible_settings_are_refused() -> None:
    for settings in (
        {},
        {"patch_view": (8, 8), "scale": (0.5, 0.2)},
        {"patch_view": (8, 8), "scale": (0.0, 1.0)},
        {"patch_view": (8, 8), "ratio": (0.0, 1.0)},
        {"patch_view": (8, 8), "jitter": -0.1},
        {"patch_view": (8, 8), "centre_share": 0.0},
    ):
        with pytest.raises(UserError):
            ViewSettings(**settings)
