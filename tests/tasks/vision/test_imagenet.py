"""ImageNet from folders, on images made here."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from flexround.models.vision import VisionAdapter, VisionModel
from tasks.vision import checkpoints
from tasks.vision.image_folder import class_list
from tasks.vision.imagenet import ImageNet
from tasks.vision.preprocessing import Preprocessing, own_preprocessing

TINY = VisionModel("timm", "test_efficientnet", None, 8, False, False, [])
SMALL = Preprocessing(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def write_images(folder, count=2, seed=0):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for i in range(count):
        pixels = generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.JPEG")


@pytest.fixture
def root(tmp_path):
    """Return a folder with two classes in train and val, classes 3 and 998 of the list."""
    for part in ("train", "val"):
        for index in (3, 998):
            write_images(tmp_path / part / class_list()[index], seed=index)
    return tmp_path


def imagenet(root, **changes):
    options = dict(
        version=1, root=str(root), preprocessing=SMALL, expected=None, tolerance=0.5, augment=False,
        eval_batch_size=2, num_workers=0,
    )  # fmt: skip
    return ImageNet(**(options | changes))


def test_class_indices_come_from_the_list_not_from_the_folders(root):
    images = imagenet(root)._images("val", lambda image: image)
    assert sorted({label for _, label in images.samples}) == [3, 998]


def test_the_class_list_is_the_thousand_in_order():
    classes = class_list()
    assert len(set(classes)) == 1000
    assert classes == sorted(classes)
    assert classes[0] == "n01440764"  # tench


def test_evaluation_counts_right_answers(root):
    task = imagenet(root)
    network = TINY.build(1000)
    torch.nn.init.zeros_(network.classifier.weight)
    network.classifier.bias.data = torch.arange(1000.0).flip(0)  # ranks class 0, 1, 2, 3, ...
    adapter = VisionAdapter(network, task.example(), 8, torch.device("cpu"))
    assert task.evaluate(adapter) == {"top1": 0.0, "top5": 50.0}
    adapter.model.classifier.bias.data[998] = 2000
    assert task.evaluate(adapter) == {"top1": 50.0, "top5": 100.0}
    assert task.outcomes["top1"].tolist() == [False, False, True, True]


def test_calibration_is_seeded_also_when_augmented(root):
    for augment in (False, True):
        task = imagenet(root, augment=augment)
        (first,), (again,) = task.calibration(4, 0), task.calibration(4, 0)
        assert first.shape == (4, 3, 32, 32)
        assert torch.equal(first, again)
    state = torch.get_rng_state()
    imagenet(root, augment=True).calibration(2, 0)
    assert torch.equal(state, torch.get_rng_state())


def test_without_train_calibration_comes_from_val_with_a_word(root, caplog):
    import shutil

    seen = imagenet(root)
    seen.calibration(4, 0)
    assert seen.facts == {"calibration_images": "train"}
    shutil.rmtree(root / "train")
    task = imagenet(root)
    assert len(task.calibration(4, 0)[0]) == 4
    assert "taken from val" in caplog.text
    assert task.facts == {"calibration_images": "val"}


def test_too_few_images_are_refused(root):
    with pytest.raises(ValueError, match=r"num_samples=5: .*train has 4"):
        imagenet(root).calibration(5, 0)


def test_missing_fields_are_the_architectures_own():
    own = own_preprocessing(VisionModel("torchvision", "resnet18", None, 8, False, False, []))
    assert (own.resize, own.crop, own.interpolation) == (256, 224, "bilinear")
    assert list(own.mean) == [0.485, 0.456, 0.406]
    half = Preprocessing(mean=(0.5, 0.5, 0.5)).completed_by(own)
    assert (half.mean, half.std, half.crop) == ((0.5, 0.5, 0.5), own.std, 224)
    lite = own_preprocessing(
        VisionModel("timm", "tf_efficientnet_lite0", None, 8, False, False, [])
    )
    assert (lite.resize, lite.crop, lite.interpolation) == (256, 224, "bicubic")


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_patch16_224.fb_in1k", "tf_efficientnet_lite0", "test_efficientnet", "resnet10t"],
)
def test_a_resize_is_timms_own(name):
    """DeiT's crop of 224 is 0.9 of 248.9 pixels, of which timm takes 248."""
    import timm
    from timm.data import create_transform, resolve_data_config

    own = own_preprocessing(VisionModel("timm", name, None, 8, False, False, []))
    config = timm.get_pretrained_cfg(name).to_dict()
    theirs = create_transform(**resolve_data_config(pretrained_cfg=config, use_test_size=True))
    assert own.resize == theirs.transforms[0].size


@pytest.mark.parametrize(
    ("name", "resize", "crop"),
    [("resnet26d", 303, 288), ("mobilenetv4_conv_small", 269, 256), ("resnet10t", 235, 224),
     ("tf_efficientnetv2_b0", 256, 224)],
)  # fmt: skip
def test_images_are_as_large_as_those_that_timms_accuracies_are_of(name, resize, crop):
    """Trained at 224, 224, 176 and 192; tested at 288 / 0.95, 256 / 0.95, 224 / 0.95, 224 / 0.875.

    The first three are floored, as a resize of timm's is.
    """
    own = own_preprocessing(VisionModel("timm", name, None, 8, False, False, []))
    assert (own.resize, own.crop) == (resize, crop)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(90, 50), (50, 90), (64, 64)])
def test_what_is_kept_of_an_image_is_what_timm_keeps(mode, size):
    from timm.data import create_transform

    colors = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}
    own = Preprocessing(40, 36, "bicubic", crop_mode=mode, **colors).transform(augment=False)
    theirs = create_transform(36, interpolation="bicubic", crop_pct=0.9, crop_mode=mode, **colors)
    pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.to(torch.uint8).numpy())
    torch.testing.assert_close(own(image), theirs(image))


def test_a_networks_own_crop_is_taken_over():
    own = own_preprocessing(
        VisionModel("timm", "convnext_tiny.fb_in22k_ft_in1k_384", None, 8, False, False, [])
    )
    assert (own.resize, own.crop, own.crop_mode) == (384, 384, "squash")
    deit = VisionModel("timm", "deit_tiny_patch16_224.fb_in1k", None, 8, False, False, [])
    assert own_preprocessing(deit).crop_mode == "center"


def test_what_was_measured_on_is_told_by_the_crop_where_it_is_not_the_centre(root):
    """Records of before there were others have the words of the rest alone."""
    words = "Preprocessing(resize=36, crop=32, interpolation='bilinear', mean=(0.5, 0.5, 0.5), "
    words += "std=(0.5, 0.5, 0.5))"

    def told(mode):
        task = imagenet(root, preprocessing=replace(SMALL, crop_mode=mode))
        return list(islice(task.evaluation_data(), 2))

    assert told(None)[0] == told("center")[0] == words
    assert told(None) == told("center") != told("squash") == [words, "squash"]


def test_a_crop_that_an_image_cannot_fill_is_refused(root):
    own = Preprocessing(256, 224, "bilinear", (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(
        ValueError, match=r"resize=146 pixels are smaller than preprocessing.crop=224"
    ):
        Preprocessing(resize=146).completed_by(own)
    assert Preprocessing(resize=146, crop=128).completed_by(own).crop == 128


@pytest.mark.parametrize("damage", ["missing", "no_val", "empty", "unknown"])
def test_a_folder_that_can_not_be_used_is_refused(root, damage, tmp_path):
    if damage == "missing":
        root = tmp_path / "nowhere"
    elif damage == "no_val":
        (root / "val").rename(root / "validation")
    elif damage == "empty":
        for image in (root / "val").rglob("*.JPEG"):
            image.unlink()
    else:
        write_images(root / "val" / "cats")
    words = {
        "missing": "no folder val there", "no_val": "no folder val there",
        "empty": "its folder val holds no image", "unknown": "folder cats .* 1000 ImageNet classes",
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"imagenet_dir.*{words[damage]}"):
        imagenet(root)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_in_one_line(root, workers):
    bad = next((root / "val").rglob("*.JPEG"))
    bad.write_bytes(b"not an image")
    task = imagenet(root, num_workers=workers)
    adapter_like = type("Adapter", (), {"forward": lambda _, x: torch.zeros(len(x), 1000)})()
    with pytest.raises(ValueError, match=f"^image {bad} cannot be read.*remove it$"):
        task.evaluate(adapter_like)


def broken_png(folder):
    """Return a file whose second chunk of pixels has lost its name: PIL raises a SyntaxError."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    pixels = zlib.compress(bytes((1 + 3 * 64) * 64), 0)
    parts = chunk(b"IDAT", pixels[:5000]) + chunk(b"I\xdbNo", pixels[5000:]) + chunk(b"IEND", b"")
    file = folder / "broken.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + parts)
    return file


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["broken", "bomb"])
def test_an_image_that_pil_fails_on_is_named_in_one_line(root, workers, damage, monkeypatch):
    if damage == "broken":
        bad = broken_png(root / "val" / class_list()[3])
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of 2,000, above twice which it fails
        bad = root / "val" / class_list()[3] / "0.JPEG"
    task = imagenet(root, num_workers=workers)
    with pytest.raises(ValueError, match=f"^image {bad} cannot be read.*remove it$"):
        list(task.test_batches())


@pytest.mark.parametrize(
    ("expected", "value", "message"),
    [(77.0, 76.6, None), (77.0, 76.4, "expected are 77.00"), (None, 50.0, None),
     (None, 0.1, "chance is 0.10 %")],
)  # fmt: skip
def test_full_precision_off_its_figure_is_refused(root, expected, value, message):
    task = imagenet(root, expected=expected)
    if message is None:
        task.check_full_precision({"top1": value})
    else:
        with pytest.raises(ValueError, match=message):
            task.check_full_precision({"top1": value})


def test_named_weights_bring_their_own_transforms():
    from torchvision.models import ResNet50_Weights

    model = VisionModel("torchvision", "resnet50", "IMAGENET1K_V1", 8, False, False, [])
    assert own_preprocessing(model, ResNet50_Weights.IMAGENET1K_V2).resize == 232
    assert own_preprocessing(model).resize == 256


def test_named_weights_without_a_network_say_the_way_out(root, monkeypatch):
    def offline(*_, **options):
        assert options["weights_only"], "a cached file must not be unpickled"
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    model = VisionModel("torchvision", "resnet18", "IMAGENET1K_V1", 8, False, False, [])
    with pytest.raises(ValueError, match=r"can't be fetched \(no network\); .*checkpoint=PATH"):
        imagenet(root).load(model, None)


def test_weights_by_path_load(root, tmp_path):
    network = TINY.build(1000)
    checkpoints.save(network, tmp_path / "net.safetensors")
    loaded = imagenet(root).load(TINY, str(tmp_path / "net.safetensors"))
    assert torch.equal(loaded.classifier.weight, network.classifier.weight)
    with pytest.raises(ValueError, match="no default ImageNet weights"):
        imagenet(root).load(TINY, None)
