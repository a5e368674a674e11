#!/usr/bin/env python3
"""How long /health takes while the server works: health_latency.py, with ENTROPYINFER naming the program. Prints the
median and the worst of the answers under each load; none should be above 100 ms on a machine that does nothing else."""
import http.client
import json
import multiprocessing
import statistics
import time

from conftest import Server

TEXT = 'lorem ipsum dolor sit amet, '


def loads(size):
    """Requests by what is much about them; `size` 1: the largest that are of use. A body of bytes is sent as it is, in chunks."""
    text = TEXT * int(size * 15_000_000 / len(TEXT))
    n_eot, n_numbers, n_chunks, n_answer = (int(size * n) for n in (400_000, 10_000_000, 4_000_000, 200))
    return {
        'nothing': [],
        'four /tokenize of 15 MB': [('/tokenize', {'content': text})] * 4,
        'four prompts that are too long': [('/v1/completions', {'prompt': text, 'max_tokens': 1})] * 4,
        'control tokens in a message': [('/tokenize', {'messages': [{'role': 'user', 'content': '<|eot|>' * n_eot}]})] * 2,
        'many log-probabilities': [('/v1/completions', {'prompt': TEXT * 40, 'max_tokens': n_answer, 'logprobs': 20, 'echo': True, 'ignore_eos': True})] * 4,
        'a list of ten million numbers': [('/v1/completions', {'prompt': [1] * n_numbers})] * 2,
        'chunks of one byte': [('/tokenize', b'1\r\n \r\n' * n_chunks + b'0\r\n\r\n')] * 4,
    }


def health(server):
    begin = time.monotonic()
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=60)
    connection.request('GET', '/health')
    assert connection.getresponse().status == 200
    connection.close()
    return (time.monotonic() - begin) * 1000


def post(port, path, body, headers):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=600)
    connection.request('POST', path, body, headers)
    connection.getresponse().read()


def latencies(server, load):
    """Milliseconds of each answer until all of the load was answered, by processes of their own: this one only asks."""
    clients = [multiprocessing.Process(target=post, args=(server.port, path, body, {'Transfer-Encoding': 'chunked'})
                                       if isinstance(body, bytes) else (server.port, path, json.dumps(body).encode(), {}))
               for path, body in load]
    for client in clients:
        client.start()
    times = []
    while any(client.is_alive() for client in clients) or len(times) < 10:
        times.append(health(server))
    return times


if __name__ == '__main__':
    server = Server()
    print('| load | answers | median ms | worst ms |\n|---|---|---|---|')
    for name, load in loads(1).items():
        times = latencies(server, load)
        print(f'| {name} | {len(times)} | {statistics.median(times):.1f} | {max(times):.1f} |', flush=True)
    server.stop()
