"""Stream a chat completion from a cluster: the stock OpenAI client, nothing of llx in it."""

import argparse
import os
import sys

from openai import OpenAI

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
parser.add_argument("--model", default="tiny")
arguments = parser.parse_args()

client = OpenAI(base_url=arguments.url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
for chunk in client.chat.completions.create(
    model=arguments.model,
    messages=[{"role": "user", "content": arguments.prompt}],
    max_tokens=64,
    stream=True,
):
    if chunk.choices:
        sys.stdout.write(chunk.choices[0].delta.content or "")
        sys.stdout.flush()
sys.stdout.write("\n")
