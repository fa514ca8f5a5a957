"""A browser for the dashboard's tests, and what they read off its pages."""

import os
import shutil

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
BROWSES = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium, or name one in CHROMIUM"),
]


def tile(page, name):
    return (
        page.locator(".tiles div", has=page.get_by_text(name, exact=True))
        .locator("dd")
        .first.evaluate("cell => cell.firstChild.textContent")
    )


def wait_for_round(page, number):
    page.wait_for_function(
        "n => document.querySelector('[data-part=span]')?.textContent.includes(`to ${n} of`)", arg=number
    )


def wait_past_round(page, number):
    """As above, where rounds come faster than the page draws."""
    page.wait_for_function(
        "n => Number(document.querySelector('[data-part=span]')?.textContent.match(/to ([0-9,]+) of/)?.[1] ?? 0) >= n",
        arg=number,
    )


def table(page, part):
    rows = page.locator(f"[data-part={part}] tbody tr")
    return [[cell.strip() for cell in row.locator("th, td").all_inner_texts()] for row in rows.all()]


def number(value):
    return f"{value:.3f}" if value != int(value) else f"{value:.0f}"
