"""What deploy/ says to the program: flags, paths and signals are the program's."""
import json
import pathlib
import re
import shutil
import signal
import subprocess

import pytest
import yaml

from conftest import PROGRAM, ROOT
from faults_test import STREAM, chat, connect, read_all, request_bytes

DEPLOY = ROOT / 'deploy'
MANIFESTS = sorted(DEPLOY.glob('*.yaml'))


def flags_of_serve():
    help = subprocess.run([PROGRAM, 'serve', '--help'], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r'--[a-z0-9][a-z0-9-]*', help))


def resources():
    return [resource for file in MANIFESTS for resource in yaml.safe_load_all(file.read_text())]


def find(value, key):
    """All that a tree has under a key."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, child in children for found in ([child] if name == key else []) + find(child, key)]


def test_flags_are_the_servers():
    known = flags_of_serve()
    args = [arg for container_args in find(resources(), 'args') for arg in container_args]
    args += json.loads(re.findall(r'^CMD (\[.*\])', (DEPLOY / 'Dockerfile').read_text(), re.M)[-1])
    args += re.search(r'^ExecStart=(.*)', (DEPLOY / 'entropyinfer.service').read_text(), re.M)[1].split()
    flags = {arg for arg in args if arg.startswith('--')}
    assert '--api-key-file' in flags and '--device' in flags and flags <= known, flags - known
    variables = set(re.findall(r'ENTROPYINFER_\w+', (DEPLOY / 'entropyinfer.service').read_text()))
    assert variables and variables <= {'ENTROPYINFER' + flag[1:].replace('-', '_').upper() for flag in known}


def test_probes_and_mounts_are_there():
    pods = [spec for spec in find(resources(), 'spec') if 'containers' in spec]
    assert len(pods) == 4  # a server, its proxy, a leader and its workers
    for pod in pods:
        volumes = {volume['name'] for volume in pod.get('volumes', [])}
        for container in pod['containers']:
            mounts = {mount['mountPath']: mount['name'] for mount in container.get('volumeMounts', [])}
            assert set(mounts.values()) == volumes
            paths = [arg for arg in container.get('args', []) if arg.startswith('/')]
            assert all(any(path.startswith(mount) for mount in mounts) for path in paths)
            ports = {port['name'] for port in container.get('ports', [])}
            probes = [probe for name, probe in container.items() if name.endswith('Probe')]
            assert all(port in ports for probe in probes for port in find(probe, 'port'))
            assert all(path == '/health' for probe in probes for path in find(probe, 'path'))
        args = sum(find(pod, 'args'), [])
        if '--drain-timeout' in args:
            assert pod['terminationGracePeriodSeconds'] > int(args[args.index('--drain-timeout') + 1])


def test_services_select_pods():
    services = {r['metadata']['name']: r['spec']['selector'] for r in resources() if r['kind'] == 'Service'}
    labels = [{**template.get('metadata', {}).get('labels', {})} for kind in ('template', 'leaderTemplate')
              for template in find(resources(), kind)]
    added = {'statefulset.kubernetes.io/pod-name', 'leaderworkerset.sigs.k8s.io/group-index'}  # by Kubernetes
    for name, selector in services.items():
        ours = {key: value for key, value in selector.items() if key not in added}
        assert any(ours.items() <= each.items() for each in labels), name
    servers = re.findall(r'server (entropyinfer-\d+):8000;', (DEPLOY / 'nginx.conf').read_text())
    assert servers and set(servers) <= set(services)


def test_ranks_of_a_host_are_one_server_and_drain(start, monkeypatch):
    if shutil.which('mpirun') is None or b'MPI_Init' not in pathlib.Path(PROGRAM).read_bytes():
        pytest.skip('built without MPI')
    for name, value in {'SLOTS': '2', 'ENTROPYINFER': str(PROGRAM), 'OMPI_ALLOW_RUN_AS_ROOT': '1',
                        'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1', 'OMPI_MCA_rmaps_base_oversubscribe': '1'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv('ENTROPYINFER_TP', raising=False)
    server = start(program=DEPLOY / 'ranks.sh')
    with connect(server) as sock:
        sock.sendall(request_bytes(chat('Hi', **{**STREAM, 'max_tokens': 200}), 'Connection: close'))
        data = sock.recv(65536)
        server.process.send_signal(signal.SIGTERM)
        data += read_all(sock)
    assert b'"finish_reason":"length"' in data and b'[DONE]' in data
    assert server.wait() == 0
    assert server.events()[-1]['event'] == 'stopped'
