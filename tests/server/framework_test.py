"""An agent framework, OpenAI's, lets a model of scripted answers use tools over three turns, by both of OpenAI's APIs."""
import asyncio
import json

import agents
import openai
import pytest

from conftest import HERMES, serving
from scripted_model import write_scripted_model

agents.set_tracing_disabled(True)


def call(name, **arguments):
    return ['<tool_call>', json.dumps({'name': name, 'arguments': arguments}), '</tool_call>']


ANSWERS = [['I ', 'look. ', *call('weather', place='Rome')],
           [*call('weather', place='Oslo'), *call('weather', place='Bergen')],
           call('pack', things=['coat', 'boots'], count=2),
           ['Take ', 'a coat.']]


@pytest.fixture(scope='module')
def scripted(tmp_path_factory):
    with serving(model=write_scripted_model(tmp_path_factory.mktemp('scripted'), ANSWERS, HERMES)) as server:
        yield server


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('api', [agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel])
def test_three_turns_with_tools(scripted, api, stream):
    done = []

    @agents.function_tool
    def weather(place: str) -> str:
        """The weather of a place."""
        done.append(place)
        return 'snow'

    @agents.function_tool
    def pack(things: list[str], count: int) -> str:
        """Packs things."""
        done.append((things, count))
        return 'packed'

    async def run():
        client = openai.AsyncOpenAI(base_url=scripted.url + '/v1', api_key='none', max_retries=0)
        agent = agents.Agent(name='packer', instructions='Pack for a journey.', tools=[weather, pack], model=api('m', client),
                             model_settings=agents.ModelSettings(include_usage=True))
        if not stream:
            return await agents.Runner.run(agent, 'What do I take along?')
        result = agents.Runner.run_streamed(agent, 'What do I take along?')
        async for _ in result.stream_events():
            pass
        return result
    result = asyncio.run(run())
    assert result.final_output == 'Take a coat.'
    assert done[0] == 'Rome' and sorted(done[1:3]) == ['Bergen', 'Oslo'] and done[3:] == [(['coat', 'boots'], 2)]
    assert len(result.raw_responses) == 4
    # Each turn reads on where the one before ended.
    assert result.raw_responses[3].usage.input_tokens > result.raw_responses[2].usage.input_tokens
