import numpy as np
import pytest

from frcnn_plugin.visualization import contact_sheet, draw_comparison


def blank(height, width, value=128):
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_two_panels_of_a_small_image():
    picture = draw_comparison(
        blank(120, 160), [[10, 20, 90, 100]], [0], [[12, 22, 92, 102]], [0], [0.97], ["circle"]
    )
    # 160 is enlarged to 480: two panels of 480x360, a gap of 6, a title of 26.
    assert picture.shape == (360 + 26, 2 * 480 + 6, 3) and picture.dtype == np.uint8
    left, right = picture[26:, :480], picture[26:, 486:]
    assert (left != right).any()
    # Class 0 is red; BGR. The box's left edge lies at 3 * x1.
    assert left[200, 30].tolist() == [40, 39, 214] != left[200, 60].tolist()
    assert right[200, 36].tolist() == [40, 39, 214]
    assert left[200, 60].tolist() == [128, 128, 128]  # inside: the image itself


def test_large_image_keeps_its_size_and_the_input_its_pixels():
    image = blank(400, 600)
    picture = draw_comparison(image, [[0, 0, 600, 400]], [3], [], [], [], ["a"] * 4)
    assert picture.shape == (426, 1206, 3)
    assert (image == 128).all()


def test_colour_channels_stay_bgr():
    image = np.zeros((300, 500, 3), dtype=np.uint8)
    image[:, :, 0] = 200  # blue
    picture = draw_comparison(image, [], [], [], [], [], [])
    assert picture[100, 100].tolist() == [200, 0, 0]


def test_difficult_objects_are_grey():
    args = (blank(300, 500), [[50, 60, 200, 200]], [0], [], [], [], ["cat"])
    assert draw_comparison(*args)[26 + 130, 50].tolist() == [40, 39, 214]
    assert draw_comparison(*args, gt_difficult=[True])[26 + 130, 50].tolist() == [110, 110, 110]


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (480, 20)])
def test_any_shape_many_boxes_unknown_class(shape):
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-5, 30, (20, 4))
    boxes[:, 2:] += 36
    picture = draw_comparison(
        blank(*shape), boxes, [5] * 20, boxes, range(20), rng.random(20), ["one class only"]
    )
    assert picture.ndim == 3


def test_lengths_must_agree():
    with pytest.raises(ValueError):
        draw_comparison(blank(50, 50), [[0, 0, 5, 5]], [], [], [], [], ["cat"])


def test_contact_sheet():
    images = [blank(10, 20, 1), blank(30, 8, 2), blank(5, 5, 3)]
    sheet = contact_sheet(images, 2)
    # Margins of 6: columns 20 and 8, rows 30 and 5.
    assert sheet.shape == (6 + 30 + 6 + 5 + 6, 6 + 20 + 6 + 8 + 6, 3)
    assert sheet[6, 6, 0] == 1 and sheet[6, 32, 0] == 2 and sheet[42, 6, 0] == 3
    assert sheet[20, 6, 0] == 255  # below the first picture
    assert contact_sheet(images, 5).shape == (42, 6 + 26 + 14 + 11, 3)
    for arguments in ([], 2), (images, 0):
        with pytest.raises(ValueError, match="need pictures and columns"):
            contact_sheet(*arguments)
