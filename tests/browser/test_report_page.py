"""The page of a report in a real browser: open, click, filter, play."""

from __future__ import annotations

import json

import pytest
from helpers import run_tool
from report_case import HOSTILE, write_report_case

NUM_VIDEOS = 120


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report_case(folder, NUM_VIDEOS)
    options = ("--metric", "ytvis", "--frames", folder / "frames", "--report", folder / "report")
    assert run_tool("eval_json", folder / "dt.json", "--gt", folder / "gt.json", *options) == 0
    return folder / "report"


@pytest.fixture
def opened(page, report):
    page.goto((report / "index.html").as_uri())
    page.wait_for_selector(".card")
    return page


def wait_until(page, condition):
    """Ask again and again; playwright's own waiting evaluates texts inside the page, which its rules forbid."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")


def shown(page):
    return page.locator(".card").count()


def test_numbers_are_shown_as_they_are_in_the_files(opened, report):
    analysis = json.loads((report / "analysis.json").read_text())
    assert opened.locator(".tile.first b").inner_text() == f"{analysis['AP']:.3f}"
    kinds = opened.locator("#kinds tbody tr").all_inner_texts()
    wanted = [(kind, str(row["count"])) for kind, row in analysis["kinds"].items()]
    assert [tuple(text.split()[:2]) for text in kinds] == wanted
    assert opened.locator("figure.chart .legend li").count() >= 5


@pytest.mark.parametrize("kind", ["class", "localisation", "missed", "background"])
def test_a_click_on_an_error_kind_leads_to_its_videos(opened, report, kind):
    errors = json.loads((report / "analysis.json").read_text())["errors"]
    opened.click(f"#kinds .kind-{kind}")
    videos = {each["video_id"] for each in errors if each["kind"] == kind}
    assert 0 < shown(opened) == len(videos) < NUM_VIDEOS
    assert opened.inner_text("#count") == f"{len(videos)} of {NUM_VIDEOS} videos"
    opened.click("text=clear")
    assert shown(opened) == NUM_VIDEOS


def test_a_cell_of_the_matrix_a_class_and_a_score_lead_to_their_videos(opened):
    opened.locator("#matrix tbody tr").filter(has_text="window.broken").locator("td.wrong button").first.click()
    assert shown(opened) == NUM_VIDEOS // 3  # every third has its second track found as a cat
    opened.click("text=clear")
    opened.select_option("#class", "__proto__")
    assert shown(opened) == NUM_VIDEOS // 3
    opened.fill("#low", "0.5")
    opened.press("#low", "Enter")
    assert shown(opened) == 0 and opened.locator("text=No video fits").is_visible()
    opened.click("text=Show all")
    opened.fill("#text", "猫")
    assert shown(opened) == NUM_VIDEOS // 2


def test_all_videos_play_and_only_those_in_sight_are_drawn(opened):
    opened.evaluate("document.getElementById('videos').scrollIntoView()")
    wait_until(opened, "document.querySelector('.card canvas').width > 0")
    drawn = "[...document.querySelectorAll('.card canvas')].filter((each) => each.width > 0).length"
    assert shown(opened) == NUM_VIDEOS and 2 <= opened.evaluate(drawn) <= 60
    first = opened.locator(".card output").first
    assert first.inner_text() == "1 / 4"
    opened.click("#play-all")
    wait_until(opened, "document.querySelector('.card output').textContent !== '1 / 4'")
    assert opened.evaluate("playback.players.size") <= 30
    opened.click("#play-all")
    assert opened.evaluate("playback.players.size") == 0


def test_pictures_have_the_frame_and_the_masks(opened):
    """The frame has grey 0, a mask a colour; a frame that is missing on disk is grey under the masks."""
    count = """(canvas) => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let colored = 0, black = 0, grey = 0;
        for (let i = 0; i < data.length; i += 4) {
            if (data[i + 1] > data[i] + 60) colored++;
            if (data[i] + data[i + 1] + data[i + 2] < 30) black++;
            if (data[i] === 139 && data[i + 1] === 146 && data[i + 2] === 156) grey++;
        }
        return {colored, black, grey, all: data.length / 4};
    }"""
    seen = {}
    for number in (1, NUM_VIDEOS):
        opened.fill("#text", f"video{number}" if number % 2 == 0 else f"{number} {number}<b>")
        canvas = opened.locator(f'.card[data-video="{number}"] canvas').first
        canvas.scroll_into_view_if_needed()
        wait_until(opened, f"""document.querySelector('.card[data-video="{number}"] canvas').width > 0""")
        opened.wait_for_timeout(300)
        seen[number] = canvas.evaluate(count)
    assert seen[1]["colored"] > 0.03 * seen[1]["all"] and seen[1]["black"] > 0.5 * seen[1]["all"]
    last = seen[NUM_VIDEOS]
    assert last["colored"] > 0.03 * last["all"] and last["grey"] > 0.4 * last["all"]
    assert "frames not found" in opened.locator(f'.card[data-video="{NUM_VIDEOS}"] .remark').inner_text()


def test_the_viewer_shows_one_video_and_goes_to_the_next(opened):
    opened.click("#kinds .kind-missed")
    opened.click(".card .title")
    viewer = opened.locator("#viewer")
    title = viewer.locator("h2").inner_text()
    assert viewer.is_visible() and viewer.locator("section").count() == 3
    viewer.locator("li button.row").first.click()
    opened.keyboard.press("ArrowRight")
    assert viewer.locator("h2").inner_text() != title
    opened.keyboard.press("Escape")
    assert not viewer.is_visible() and opened.evaluate("playback.players.size") == 0


def test_hostile_names_stay_text(opened):
    assert opened.evaluate("window.broken") is None and opened.locator("img").count() == 0
    names = opened.locator("#class-table tbody td:first-child").all_text_contents()
    assert HOSTILE in names and "__proto__" in names


def test_the_page_asks_for_nothing_but_itself(page, report):
    addresses = []
    page.on("request", lambda request: addresses.append(request.url))
    page.goto((report / "index.html").as_uri())
    page.wait_for_selector(".card")
    assert [each for each in addresses if not each.startswith(("file:", "data:"))] == []
