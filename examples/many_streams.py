"""Many answers at once, and which instance gave each: python many_streams.py [HOW_MANY]

Reads LLX_URL (default http://127.0.0.1:8000) and LLX_API_KEY (default: none needed).
"""

import asyncio
import os
import sys
from collections import Counter

from openai import AsyncOpenAI


async def ask(client: AsyncOpenAI, model: str, number: int) -> str:
    """Ask one question; return the instance that answered."""
    answer = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": f"What is the meaning of {number}?"}],
        max_tokens=32,
    )
    return answer.headers.get("x-llx-instance", "?")


async def main() -> None:
    how_many = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    client = AsyncOpenAI(
        base_url=os.environ.get("LLX_URL", "http://127.0.0.1:8000") + "/v1",
        api_key=os.environ.get("LLX_API_KEY", "unused"),
    )
    async with client:
        model = (await client.models.list()).data[0].id
        instances = await asyncio.gather(*(ask(client, model, n) for n in range(how_many)))
    for instance, count in sorted(Counter(instances).items()):
        print(f"{instance}: {count}")


asyncio.run(main())
