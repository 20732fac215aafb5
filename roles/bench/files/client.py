"""`vllm bench serve`, whose prompts are turns of conversations where --turns asks for several. Runs with vLLM's Python.

Each client has one conversation after another. A turn is asked with all that was said before it, and with the
conversation's X-Session-ID.
"""

import argparse
import collections
import copy
import json
import uuid


class Conversation(object):
    """What one client and the model have said.

    Attributes:
        name: its X-Session-ID.
        text: prompts and answers so far.
        tokens: of that text, as they were asked for.
        turns: prompts that were answered.
    """

    def __init__(self):
        self.name, self.text, self.tokens, self.turns = uuid.uuid4().hex, "", 0, 0


class Client(object):
    """The benchmark's requests, in conversations of so many turns.

    Attributes:
        history: tokens that were asked again, since a turn before had them.
    """

    def __init__(self, turns, send):
        """send: vLLM's function for one request."""
        self.turns, self.send = turns, send
        self.history = 0
        self.idle = collections.deque()
        # Name of the conversation by the prompt that is on its way.
        self.names = {}

    async def ask(self, request_func_input, **others):
        """Ask as `send` does. Without a progress bar, even None, it is the question whether the server answers."""
        request = copy.copy(request_func_input)
        if "pbar" not in others:
            # That has the prompt of the first request, which a prefix cache would know then.
            half = len(request.prompt) // 2
            request.prompt = request.prompt[half:] + request.prompt[:half]
            return await self.send(request, **others)
        conversation = self.idle.popleft() if self.idle else Conversation()
        request.prompt = conversation.text + request.prompt
        if self.turns > 1:
            self.names[request.prompt] = conversation.name
        self.history += conversation.tokens
        answer = await self.send(request, **others)
        self.names.pop(request.prompt, None)
        conversation.text = request.prompt + answer.generated_text
        conversation.tokens += request.prompt_len + request.output_len
        conversation.turns += 1
        if answer.success and conversation.turns < self.turns:
            self.idle.append(conversation)
        return answer

    def post_of(self, post):
        """Return aiohttp's method `post` with the header of the conversation."""
        def posted(session, url, **others):
            name = self.names.get(others["json"]["prompt"])
            headers = dict(others.pop("headers"), **({"X-Session-ID": name} if name else {}))
            return post(session, url, headers=headers, **others)

        return posted


def main():
    import aiohttp
    from vllm.benchmarks import serve

    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=1)
    serve.add_cli_args(parser)
    arguments = parser.parse_args()
    client = Client(arguments.turns, serve.ASYNC_REQUEST_FUNCS["openai"])
    serve.ASYNC_REQUEST_FUNCS["openai"] = client.ask
    aiohttp.ClientSession.post = client.post_of(aiohttp.ClientSession.post)
    serve.main(arguments)
    with open(arguments.result_filename) as stream:
        result = json.load(stream)
    with open(arguments.result_filename, "w") as stream:
        json.dump(dict(result, history_tokens=client.history), stream)


if __name__ == "__main__":
    main()
