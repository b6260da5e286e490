"""Looking at the screen of an application that a test drives."""

import time

WAIT_S = 20.0


def screen_text(app):
    """What is on the terminal."""
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips) + "\n"


async def shown(pilot, words):
    """Waits until `words` are on the screen; returns all of it."""
    end = time.monotonic() + WAIT_S
    while words not in (text := screen_text(pilot.app)):
        assert time.monotonic() < end, f'no "{words}" in\n{text}'
        await pilot.pause(0.02)
    return text
