"""Images over HTTP: answers are those of `jaxptft predict` and of torch, and what is no image is refused."""

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

DIGITS = 3e-6  # six digits are told, and the last bits of a float depend on the shape of the batch


@pytest.fixture(scope="module")
def server(serving, vit):
    with serving(vit, batch_sizes=(1, 12), max_rows=30, max_bytes=200_000) as found:
        yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of several kinds and shapes; the first is as the model reads it."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    kinds = (
        ("a.png", 16, 16, 3),
        ("b.jpg", 30, 20, 3),
        ("c.png", 12, 40, 4),
        ("d.gif", 9, 9, 1),
        ("e.webp", 50, 50, 3),
    )
    for name, height, width, channels in kinds:
        pixels = rng.integers(0, 256, (height, width, channels), np.uint8)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / name)
    return sorted(folder.iterdir())


def row(content):
    return {"image": base64.b64encode(content).decode()}


def test_answers_are_those_of_predict_and_of_torch(server, vit, files, command, tmp_path):
    told = command("predict", vit, "--data", files[0].parent, "--out", tmp_path / "p.jsonl")
    assert told.status == 0, told.err
    expected = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    rows = [row(file.read_bytes()) for file in files]
    found = server.ask("/predict", {"rows": rows * 6}).content["predictions"]  # in two batches
    assert np.ptp([line["probabilities"]["cat"] for line in expected]) > 100 * DIGITS
    assert [line["label"] for line in found] == 6 * [line["label"] for line in expected]
    single = server.ask("/predict", rows[2]).content
    for one, other in zip([single, *found], [expected[2], *6 * expected], strict=True):
        assert list(one) == ["label", "probabilities"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=DIGITS)
    pixels = np.asarray(Image.open(files[0]), np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        model = transformers.ViTForImageClassification.from_pretrained(vit).eval()
        exact = model(torch.from_numpy(pixels)).logits[0].double().softmax(-1).numpy()
    np.testing.assert_allclose(list(found[0]["probabilities"].values()), exact, atol=1e-5)
    devices = jax.device_count()
    assert server.served.answerer.shapes == [(-(-size // devices) * devices, 16, 16, 3) for size in (1, 12)]


def whole(kind="PNG", size=(16, 16)):
    made = io.BytesIO()
    Image.new("RGB", size, "red").save(made, kind)
    return made.getvalue()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"image": "not base64!"}, "image is not base64; encode the bytes of an image file"),
        ({"image": "aGVsbG8"}, "image is not base64; encode the bytes of an image file"),  # its padding is lacking
        ({"image": ""}, "image is ''"),
        ({"image": 3}, "image is 3"),
        ({"image": "naïve"}, "image is not base64"),
        (row(b"hello"), "image is no image (PNG, JPEG, GIF, BMP, PPM, TIFF, WEBP), or its beginning is damaged"),
        (row(whole()[:50]), "image is cut short"),
        ({"rows": [row(whole()), row(whole("JPEG")[:-300])]}, "rows.1.image "),
        ({"text": "so good"}, "unknown field text; known: image, rows"),
        ({}, "image is required"),
    ],
    ids=str,
)
def test_what_is_no_image_is_refused(server, body, told):
    reply = server.ask("/predict", body)
    assert (reply.status, reply.content["detail"][: len(told)]) == (422, told)
    assert server.ask("/predict", row(whole())).status == 200


def test_images_that_wait_to_be_decoded_count_and_what_fails_there_is_logged(serving, vit, monkeypatch, caplog):
    may, entered = threading.Event(), threading.Event()

    def stuck(content, how):
        entered.set()
        assert may.wait(60)
        raise MemoryError("no room for pixels")

    with serving(vit, batch_sizes=(1,), max_rows=2, queue_rows=2, wait=True) as found, ThreadPoolExecutor(1) as pool:
        with monkeypatch.context() as patched:
            patched.setattr("jaxptft.recipes.serving.images.decode", stuck)
            first = pool.submit(found.ask, "/predict", {"rows": [row(whole()), row(whole())]})
            assert entered.wait(60)
            assert found.ask("/predict", row(whole())).status == 429
            may.set()
            reply = first.result(60)
        told = "the request failed (MemoryError); the server's log has more"
        assert (reply.status, reply.content["detail"]) == (500, told)
        assert "2 rows could not be made ready" in caplog.text
        assert "no room for pixels" in caplog.text
        assert found.ask("/predict", row(whole())).status == 200


def test_large_files_are_refused_unread(server):
    rng = np.random.default_rng(0)
    made = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)).save(made, "BMP")
    reply = server.ask("/predict", row(made.getvalue()))
    assert (reply.status, reply.content["detail"]) == (
        413,
        "the body has more than 200000 bytes; send fewer rows at a time",
    )
    reply = server.ask("/predict", row(whole("PNG", (9000, 9000))))  # 81 million pixels, in few bytes
    assert reply.status in (413, 422)


def test_what_is_of_texts_alone_is_refused(refused, vit):
    assert f"lengths is (16,), and {vit} reads images; leave it out" in refused("serve", vit, "--lengths", 16)
    assert "max_length" in refused("serve", vit, "--max-length", 16)
