"""The page, in a browser: one types text and sees labels and scores."""

import base64
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page whose errors are the test's, and which asks 127.0.0.1 alone."""
    made, wrong = browser.new_page(viewport={"width": 900, "height": 640}), []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("console", lambda line: wrong.append(line.text) if _is_error(line) else None)
    made.on("request", lambda request: wrong.append(request.url) if not _local(request.url) else None)
    yield made
    made.close()
    assert wrong == []


def _is_error(line):
    return line.type == "error" and not line.text.startswith("Failed to load resource")  # a refusal, which is shown


def _local(url):
    return url.startswith(("http://127.0.0.1:", "data:"))


@pytest.fixture(scope="module")
def server(serving, finished):
    with serving(finished.out, batch_sizes=(1,), lengths=(16,)) as found:
        yield found


def test_text_is_typed_and_its_labels_and_scores_are_shown(page, server):
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.get_by_label("Text", exact=True).fill("the film was so good")
    page.get_by_role("button", name="Predict").click()
    answer = page.locator("#answer")
    answer.locator(".big").wait_for()
    expected = server.ask("/predict", {"text": "the film was so good"}).content
    assert answer.locator(".big").inner_text() == expected["label"] == "pos"
    ranked = sorted(expected["probabilities"].items(), key=lambda item: -item[1])
    shown = [row.inner_text().split() for row in answer.locator(".row").all()]
    assert shown == [[name, f"{100 * share:.1f}", "%"] for name, share in ranked]
    widths = [row.bounding_box()["width"] for row in answer.locator(".bar i").all()]
    assert widths[0] > widths[1]
    assert "cut" not in answer.inner_text()

    page.get_by_label("Text", exact=True).fill("bad " * 30)
    page.keyboard.press("Control+Enter")
    page.get_by_text("was cut").wait_for()
    assert answer.locator(".big").inner_text() == "neg"


def test_what_is_refused_is_shown(page, server):
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.get_by_label("Text", exact=True).fill(" \n ")
    page.get_by_role("button", name="Predict").click()
    page.locator("#answer .error").wait_for()
    assert page.locator("#answer").inner_text() == "text is empty"


def test_entities_are_marked_in_the_text(page, serving, make_model, tmp_path):
    labels = {0: "O", 1: "B-X", 2: "I-X"}
    changes = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    model = make_model(tmp_path / "tagger", "BertForTokenClassification", **changes)
    with serving(model, batch_sizes=(1,), lengths=(20,)) as found:
        text = "<b>so</b> 😀 good bad film"
        entities = found.ask("/predict", {"text": text}).content["entities"]
        page.goto(f"http://127.0.0.1:{found.port}/")
        page.get_by_label("Text").fill(text)
        page.get_by_role("button", name="Predict").click()
        page.locator("#answer p").wait_for()
        marks = [mark.inner_text() for mark in page.locator("#answer mark").all()]
        assert marks == [entity["text"] + entity["type"] for entity in entities]
        assert entities
        assert page.locator("#answer b").count() == 0


FIELDS = {
    "BertForQuestionAnswering": {"Question": "was it good", "Context": "the film was so good and very very bad"},
    "BertForMultipleChoice": {"Context": "so good", "Choices, one a line": "bad film\ngood book\n\n"},
}


@pytest.mark.parametrize("architecture", FIELDS)
def test_other_tasks_have_fields_of_their_own(architecture, page, serving, make_model, tmp_path):
    model = make_model(tmp_path / "model", architecture)
    with serving(model, batch_sizes=(1,), lengths=(20,)) as found:
        page.goto(f"http://127.0.0.1:{found.port}/")
        for label, text in FIELDS[architecture].items():
            page.get_by_label(label).fill(text)
        page.get_by_role("button", name="Predict").click()
        page.locator("#answer .big").wait_for()
        given = list(FIELDS[architecture].values())
        if architecture == "BertForQuestionAnswering":
            row = dict(zip(("question", "context"), given, strict=True))
        else:
            row = {"context": given[0], "choices": given[1].split("\n")[:2]}
        answer = found.ask("/predict", row).content
        assert page.locator("#answer .big").inner_text() == answer["answer"]
        assert page.locator("#answer .row").count() == len(answer.get("n_best", answer.get("probabilities")))


def test_an_image_is_chosen_and_shown_beside_its_labels(page, serving, vit, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    with serving(vit, batch_sizes=(1,)) as found:
        page.goto(f"http://127.0.0.1:{found.port}/")
        page.get_by_label("Image").set_input_files(tmp_path / "red.png")
        page.get_by_role("button", name="Predict").click()
        answer = page.locator("#answer")
        answer.locator(".big").wait_for()
        content = base64.b64encode((tmp_path / "red.png").read_bytes()).decode()
        assert answer.locator(".big").inner_text() == found.ask("/predict", {"image": content}).content["label"]
        assert answer.locator(".row").count() == 3
        assert answer.locator("img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [40, 20]
        (tmp_path / "bad.png").write_bytes(b"hello")
        page.get_by_label("Image").set_input_files(tmp_path / "bad.png")
        page.get_by_role("button", name="Predict").click()
        answer.locator(".error").wait_for()
        assert answer.inner_text().startswith("image is no image")


def test_the_interface_is_drawn(page, server):
    page.goto(f"http://127.0.0.1:{server.port}/docs")
    page.get_by_role("heading", name="POST /predict").wait_for()
    assert """-d '{"text":"..."}'""" in page.locator("main").inner_text()
    assert page.get_by_role("heading", level=2).all_inner_texts() == ["POST /predict", "GET /healthz", "GET /metadata"]
