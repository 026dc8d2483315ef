"""LangChain's ChatOpenAI on a server, streaming. Environment: OPENAI_BASE_URL, OPENAI_API_KEY.

pip install langchain-openai
layerloom serve demo
python examples/langchain_chat.py math+auto "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?"
"""

import os
import sys

from langchain_openai import ChatOpenAI

os.environ.setdefault("OPENAI_BASE_URL", "http://localhost:8000/v1")
os.environ.setdefault("OPENAI_API_KEY", "none")

name, question = sys.argv[1:]
chat = ChatOpenAI(model=name, temperature=0, max_tokens=64)
for part in chat.stream(question):
    print(part.content, end="", flush=True)
print()
