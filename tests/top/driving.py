"""Looking at the screen of an application that a test drives."""

import time

WAIT_S = 20.0


def screen_text(app):
    """What is on the terminal."""
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips) + "\n"


async def shown(pilot, words, *, without=""):
    """Waits until `words` are on the screen, and `without` is not; returns all of it.

    Then what came with them has been handled, too: the next key meets a screen that is ready.
    """
    await until(pilot, lambda: _is_shown(pilot, words, without))
    await pilot.pause()
    return screen_text(pilot.app)


async def until(pilot, holds):
    """Waits until `holds`: what a key or a look brings about takes several turns of the loop."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, f"in vain, with\n{screen_text(pilot.app)}"
        await pilot.pause(0.02)


def _is_shown(pilot, words, without):
    text = screen_text(pilot.app)
    return words in text and (not without or without not in text)
