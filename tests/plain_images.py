"""Folders of images of one colour each, and what was read of them."""

from PIL import Image

from hebm_sample.data.dataset import load_images

SIZE = 8


def draw(folder, *names, shade=None):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        value = i if shade is None else shade
        Image.new("RGB", (SIZE, SIZE), (value, 2 * value % 256, 3)).save(path)


def load(source, tmp_path, **options):
    options = {"size": SIZE, "cache_dir": tmp_path / "cache", "progress": False, **options}
    return load_images(source, **options)


def shades(images):
    return [int(x[0, 0, 0]) for x in images.images]
