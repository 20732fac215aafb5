"""Which server gets a request."""

import concurrent.futures
import time
from collections import Counter

import pytest
from balancer_rig import KEYS

SESSIONS = [f"session-{index}" for index in range(1000)]


def homes(balancer, well, sessions=SESSIONS, times=1, **headers):
    """The servers that each session's requests went to."""
    for server in well:
        server.asked.clear()
    connection = balancer.connect()
    for _ in range(times):
        for session in sessions:
            status, _, _ = balancer.ask(connection=connection, X_Session_ID=session, **headers)
            assert status == 200
    connection.close()
    found = {session: [] for session in sessions}
    for index, server in enumerate(well):
        for asked in server.completions:
            found[asked["headers"]["x-session-id"]].append(index)
    return found


def test_a_session_stays_with_one_server(balancer, well):
    found = homes(balancer(), well, times=3)
    assert all(len(servers) == 3 for servers in found.values())
    assert [servers for servers in found.values() if len(set(servers)) > 1] == []
    shares = Counter(servers[0] for servers in found.values())
    assert all(200 <= shares[index] <= 300 for index in range(4)), shares


def test_only_sessions_of_a_leaving_server_move(balancer, well):
    """Over the four servers that makes one in n; no server's share is far from it."""
    before = homes(balancer(), well)
    moved = 0
    for gone, server in enumerate(well):
        server.stop()
        after = homes(balancer(), well)
        server.start()
        movers = {session for session in SESSIONS if after[session] != before[session]}
        assert movers == {session for session in SESSIONS if before[session] == [gone]}
        taken = Counter(after[session][0] for session in movers)
        assert len(taken) == 3 and max(taken.values()) < len(movers) * 0.5, taken
        assert len(movers) <= 300
        moved += len(movers)
    assert moved == len(SESSIONS)


def test_a_drained_server_gets_nothing_new(balancer, well):
    found = homes(balancer(load_balancer_drained=["box/s2"]), well)
    assert well[2].asked == []
    assert {server for servers in found.values() for server in servers} == {0, 1, 3}


def test_sessions_come_home_when_their_server_is_back(balancer, well):
    running, sessions = balancer(load_balancer_fail_timeout=1), SESSIONS[:100]
    before = homes(running, well, sessions)
    well[0].stop()
    assert homes(running, well, sessions) != before
    well[0].start()
    time.sleep(2.1)
    homes(running, well, sessions)
    assert homes(running, well, sessions) == before


def test_the_same_session_of_two_clients_is_two(balancer, well):
    running = balancer()
    alices = homes(running, well, SESSIONS[:100])
    assert homes(running, well, SESSIONS[:100], Authorization=f"Bearer {KEYS['bob']}") != alices


def at_once(balancer, count):
    """`count` slow requests at the same time, without a session."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(balancer.ask, body={"prompt": f"p{index}", "pace": 0.3}) for index in range(count)]
        assert all(item.result()[0] == 200 for item in asked)


def test_the_anonymous_are_spread_by_load(balancer, well):
    at_once(balancer(), 40)
    assert [len(server.asked) for server in well] == [10, 10, 10, 10]


def test_the_anonymous_stay_by_address_where_that_is_asked_for(balancer, well):
    at_once(balancer(load_balancer_anonymous="address"), 12)
    assert sorted(len(server.asked) for server in well) == [0, 0, 0, 12]


@pytest.mark.parametrize(("default", "status"), [("", 404), ("two", 200)])
def test_each_pool_has_its_path(balancer, well, default, status):
    pools = {
        name: [{"name": f"box/{name}", "address": "127.0.0.1", "port": well[index].port}]
        for index, name in enumerate(("one", "two"))
    }
    running = balancer(load_balancer_pools=pools, load_balancer_default_pool=default)
    assert running.ask(path="/one/v1/completions")[0] == 200
    assert [item["path"] for item in well[0].asked] == ["/v1/completions"] and well[1].asked == []
    assert running.ask(path="/two/v1/completions")[0] == 200
    assert len(well[1].asked) == 1
    found, _, text = running.ask()
    assert found == status and len(well[1].asked) == 1 + (status == 200)
    assert status == 200 or "/one/v1, /two/v1" in text
    well[0].stop()
    assert [running.ask("GET", path)[0] for path in ("/one/health", "/two/health", "/health")] == [503, 200, status]
