"""docker-compose.yml, and all that has to agree with it, as far as can be told without Docker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.docker import Docker
from tests.support.jaeger import asked_for
from tests.support.stack_files import ROOT, VARIABLE, compose, defaults, load

COMPOSE = (ROOT / "docker-compose.yml").read_text()
SERVICES = compose()
LGTM = "lgtm"
"""The service that is left as its image has it, see test_lgtm.py."""
PROMISED = {"postgres", "shop", "load", "collector", "jaeger", "prometheus", "grafana"}
LISTENS = {
    "postgres": {5432},
    "shop": {8000},
    "collector": {4317, 4318, 8888, 13133},
    "jaeger": {4317, 16686, 13133},
    "prometheus": {9090},
    "grafana": {3000},
    "lgtm": {3000, 4317, 4318, 9090},
    "lgtm-shop": {8000},
}
"""Ports inside the containers: the images' own, and what the files of the stack set (see below)."""

ENDPOINT = re.compile(r"(?<![\w.-])([a-z][a-z-]*):(\d{4,5})(?!\d)")
FILES_WITH_ENDPOINTS = ("docker-compose.yml", "prometheus/prometheus.yaml")


def shell_commands() -> list[str]:
    """Those that the documents show."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    documents = [*ROOT.glob("*.md"), *(document for folder in folders for document in folder.rglob("*.md"))]
    texts = [document.read_text() for document in sorted(documents)]
    blocks = [block for text in texts for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]


COMMANDS = shell_commands()


def dependencies(service: str) -> dict[str, str]:
    return {name: each["condition"] for name, each in SERVICES[service].get("depends_on", {}).items()}


def mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    return [(source, target) for source, target, *_ in (each.split(":") for each in service.get("volumes", ()))]


def test_the_promised_services_are_there() -> None:
    assert set(SERVICES) >= PROMISED


def test_it_follows_the_compose_specification() -> None:
    """The schema that check-jsonschema carries accepts it."""
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_images_are_pinned() -> None:
    """Every image that is not built here has a version, and the digest of what that version was."""
    images = {service["image"] for service in SERVICES.values()} - {SERVICES["shop"]["image"]}
    images |= set(re.findall(r"^FROM (\S+)", (ROOT / "examples/shop/Dockerfile").read_text(), re.MULTILINE))
    assert [each for each in images if not re.search(r":v?\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}$", each)] == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_no_rights_that_it_does_not_need(service: str) -> None:
    """It gains none, has no capability but the one that is named here, and but for one does not write to its image."""
    assert SERVICES[service]["security_opt"] == ["no-new-privileges:true"]
    assert SERVICES[service]["cap_drop"] == ["ALL"]
    assert SERVICES[service].get("cap_add", []) == (["CHOWN"] if service == "collector-volume" else [])
    assert SERVICES[service]["read_only"] is (service != LGTM)
    assert not SERVICES[service].get("privileged")


def test_what_a_service_writes_is_a_volume_or_a_tmpfs() -> None:
    """PostgreSQL's and gunicorn's temporary files and sockets, and those between Grafana and its plugins."""
    assert {name: service["tmpfs"] for name, service in SERVICES.items() if "tmpfs" in service} == {
        "postgres": ["/tmp", "/var/run/postgresql"],
        "shop": ["/tmp"],
        "lgtm-shop": ["/tmp"],
        "grafana": ["/tmp"],
    }
    written = {name: target for name, each in SERVICES.items() for source, target in mounts(each) if source[0] != "."}
    assert written == {
        "postgres": "/var/lib/postgresql",
        "collector": "/var/lib/otelcol",
        "collector-volume": "/var/lib/otelcol",
        "prometheus": "/prometheus",
        "grafana": "/var/lib/grafana",
    }


@pytest.mark.parametrize("service", SERVICES)
def test_memory_is_limited(service: str) -> None:
    assert re.fullmatch(r"\d+m", SERVICES[service]["mem_limit"])


@pytest.mark.parametrize("service", SERVICES)
def test_logs_are_limited(service: str) -> None:
    assert SERVICES[service]["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


@pytest.mark.parametrize("service", ["collector", "jaeger"])
def test_go_collects_its_garbage_before_the_limit(service: str) -> None:
    """At 70 to 90 % of it, so that a full store or queue is not killed."""
    limit = int(SERVICES[service]["mem_limit"].removesuffix("m"))
    wanted = int(SERVICES[service]["environment"]["GOMEMLIMIT"].removesuffix("MiB"))
    assert 0.7 * limit <= wanted <= 0.9 * limit


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_published_on_this_machine_alone(service: str) -> None:
    for port in SERVICES[service].get("ports", ()):
        address, _published, listening = port.split(":")
        assert address == "127.0.0.1"
        assert int(listening) in LISTENS[service]


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("docker ")])
def test_commands_publish_ports_on_this_machine_alone(command: str) -> None:
    published = re.findall(r" (?:-p|--publish)[ =](\S+)", command)
    assert published
    assert all(re.match(r"127\.0\.0\.1:\d+:\d+$", port) for port in published)


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("jaeger ")])
def test_jaeger_shows_what_it_has_to_this_machine_alone(command: str) -> None:
    """Its UI and its API, which the binary opens to every network; all else it binds to the loopback by itself."""
    for protocol, port in (("http", 16686), ("grpc", 16685)):
        assert f" --set=extensions.jaeger_query.{protocol}.endpoint=localhost:{port}" in command


def test_every_variable_has_its_default_in_the_example() -> None:
    """.env.example lists what .env can change, with the values that hold without it; passwords have none."""
    used = dict(VARIABLE.findall(COMPOSE))
    passwords = {name for name in used if name.endswith("PASSWORD")}
    assert {name: default for name, default in used.items() if name not in passwords} == defaults()
    assert passwords == {name for name, default in used.items() if not default}
    assert passwords == set(re.findall(r"^#(\w+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE))


def test_each_program_has_a_password_of_its_own() -> None:
    """None logs in as PostgreSQL's superuser, whose name is its default; inside the container nobody is trusted."""
    raw = yaml.safe_load(COMPOSE)["services"]
    given = {
        (name, variable): match[1]
        for name, service in raw.items()
        for variable, value in service.get("environment", {}).items()
        if (match := re.match(r"\$\{(\w+PASSWORD):\?", str(value)))
    }
    assert given == {
        ("postgres", "POSTGRES_PASSWORD"): "POSTGRES_PASSWORD",
        ("postgres", "SHOP_PASSWORD"): "SHOP_PASSWORD",
        ("postgres", "COLLECTOR_PASSWORD"): "COLLECTOR_PASSWORD",
        ("shop", "PGPASSWORD"): "SHOP_PASSWORD",
        ("collector", "POSTGRES_PASSWORD"): "COLLECTOR_PASSWORD",
        ("grafana", "GF_SECURITY_ADMIN_PASSWORD"): "GRAFANA_PASSWORD",
        ("lgtm-shop", "PGPASSWORD"): "SHOP_PASSWORD",
        ("lgtm", "POSTGRES_PASSWORD"): "COLLECTOR_PASSWORD",
        ("lgtm", "GF_SECURITY_ADMIN_PASSWORD"): "GRAFANA_PASSWORD",
    }
    assert raw["shop"]["environment"]["DATABASE_URL"] == "postgresql://shop@postgres:5432/shop"
    assert raw["collector"]["environment"]["POSTGRES_USER"] == "collector"
    assert "POSTGRES_USER" not in raw["postgres"]["environment"]
    assert raw["postgres"]["environment"]["POSTGRES_INITDB_ARGS"] == "--auth=scram-sha-256"
    assert ("./postgres/roles.sql", "/docker-entrypoint-initdb.d/roles.sql") in mounts(raw["postgres"])


def test_no_secret_is_in_the_tree() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert "/.env" in ignored
    if not (ROOT / ".git").exists():
        pytest.skip("an sdist has no index")
    listed = subprocess.run(["git", "ls-files", ".env"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout == ""


@pytest.mark.parametrize("service", SERVICES)
def test_whatever_is_waited_for_can_be_waited_for(service: str) -> None:
    """A condition `service_healthy` needs a health check; one-shot services are waited for to their end."""
    for name, condition in dependencies(service).items():
        if condition == "service_healthy":
            assert "healthcheck" in SERVICES[name], name
        elif condition == "service_completed_successfully":
            assert SERVICES[name].get("restart", "no") == "no"
        else:
            assert (service, name) == ("collector-health", "collector"), "it is what the waiting is for"


def test_every_service_is_waited_for_until_it_is_healthy() -> None:
    """`up --wait` returns when all of it works: only the load, whose answers nobody waits for, has no check."""
    unchecked = {name for name, service in SERVICES.items() if "healthcheck" not in service}
    assert unchecked == {"load", "lgtm-load", "collector", "collector-volume"}
    assert dependencies("collector")["collector-volume"] == "service_completed_successfully"


def test_the_collector_is_asked_over_the_network() -> None:
    """By its name, looked up each time; who shares a container's network stays in that of one that has gone."""
    assert SERVICES["collector-health"]["healthcheck"]["test"][-1] == "http://collector:13133/"
    assert SERVICES["collector"]["environment"]["OTLP_HOST"] == "0.0.0.0"
    assert {service.get("network_mode", "none") for service in SERVICES.values()} == {"none"}


def test_only_what_has_to_runs_as_root() -> None:
    """Images that would run as root here are named; all others have a user of their own."""
    images = ("busybox", "postgres", "grafana/otel-lgtm")
    as_root_by_default = {name for name, each in SERVICES.items() if each["image"].startswith(images)}
    as_root = {name for name in as_root_by_default if "user" not in SERVICES[name]}
    assert as_root == {"collector-volume", LGTM}
    assert "\nUSER nobody\n" in (ROOT / "examples/shop/Dockerfile").read_text()


@pytest.mark.parametrize("service", SERVICES)
def test_every_mounted_file_exists(service: str) -> None:
    """What is mounted from the repository is there, read-only; every other volume is declared."""
    declared = yaml.safe_load(COMPOSE)["volumes"]
    for volume in SERVICES[service].get("volumes", ()):
        source, _target, *options = volume.split(":")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert options == ["ro"], volume
        else:
            assert source in declared


def test_commands_name_files_that_are_mounted() -> None:
    """A `--config` inside a container is a file that is mounted there."""
    for name in ("collector", "prometheus"):
        targets = {target for _source, target in mounts(SERVICES[name])}
        configs = {
            argument.split("=")[1]
            for argument in SERVICES[name]["command"]
            if re.match(r"--config(\.file)?=", argument)
        }
        assert configs
        assert configs <= targets


def test_prometheus_serves_the_runbook_that_the_alerts_link_to() -> None:
    """At the address that is published: the folder that it serves is the one where the page is mounted."""
    arguments = dict(argument.split("=", 1) for argument in SERVICES["prometheus"]["command"] if "=" in argument)
    mounted = dict(mounts(SERVICES["prometheus"]))
    assert mounted["./docs/operations.md"] == f"{arguments['--web.user-assets']}/operations.md"
    published = SERVICES["prometheus"]["ports"][0].rpartition(":")[0]
    assert arguments["--web.external-url"] == f"http://{published}"


@pytest.mark.parametrize("path", FILES_WITH_ENDPOINTS)
def test_endpoints_name_services_and_their_ports(path: str) -> None:
    """Whoever is spoken to by name exists and listens on that port."""
    text = "\n".join(line.partition(" #")[0] for line in (ROOT / path).read_text().splitlines())
    spoken_to = [(name, int(port)) for name, port in ENDPOINT.findall(text) if name not in {"busybox", "user"}]
    assert spoken_to
    for name, port in spoken_to:
        assert port in LISTENS.get(name, ()), f"{name}:{port}"


def test_the_collector_listens_and_sends_where_the_others_expect_it() -> None:
    """Its receivers, health and metrics are on the ports of this map, and each of its variables is set here."""
    text = (ROOT / "collector-config/collector.yaml").read_text()
    config = yaml.safe_load(text)
    protocols = config["receivers"]["otlp"]["protocols"]
    assert protocols["grpc"]["endpoint"].endswith(":4317")
    assert protocols["http"]["endpoint"].endswith(":4318")
    assert config["extensions"]["health_check"]["endpoint"].endswith(":13133")
    (reader,) = config["service"]["telemetry"]["metrics"]["readers"]
    assert reader["pull"]["exporter"]["prometheus"]["port"] == 8888
    assert set(re.findall(r"\$\{env:(\w+)", text)) <= set(SERVICES["collector"]["environment"])
    folders = [each["directory"] for name, each in config["extensions"].items() if name.startswith("file_storage")]
    targets = [Path(target) for _source, target in mounts(SERVICES["collector"])]
    assert folders
    assert all(any(Path(folder).is_relative_to(target) for target in targets) for folder in folders)


def test_grafana_finds_its_sources_and_dashboards() -> None:
    """The addresses of its data sources come from the environment; the dashboards' folder is mounted and filled."""
    sources = load("grafana/provisioning/datasources/datasources.yaml")["datasources"]
    environment = SERVICES["grafana"]["environment"]
    assert {source["url"].lstrip("$") for source in sources} <= set(environment)
    by_uid = {source["uid"]: source for source in sources}
    (exemplars,) = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["url"].partition("/")[0].lstrip("$") in environment
    (provider,) = load("grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    folder = {target: source for source, target in mounts(SERVICES["grafana"])}[provider["options"]["path"]]
    assert list((ROOT / folder).glob("*.json"))


def test_grafana_keeps_the_plugins_of_its_sources() -> None:
    """Since 13.2 both are plugins in the image, but for the one called slim; no setting takes them away.

    The installer would replace them in the background at each start: it ends the plugin first, and if what it fetches
    does not arrive, or cannot be written, the source is gone. No folder of plugins is moved, covered or switched off.
    """
    grafana = SERVICES["grafana"]
    assert re.fullmatch(r"grafana/grafana:[\d.]+@\S+", grafana["image"])
    sources = load("grafana/provisioning/datasources/datasources.yaml")["datasources"]
    assert {source["type"] for source in sources} == {"jaeger", "prometheus"}
    about_plugins = {name: value for name, value in grafana["environment"].items() if "PLUGIN" in name}
    assert about_plugins == {"GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false", "GF_PLUGINS_PREINSTALL_DISABLED": "true"}
    assert not [name for name in grafana["environment"] if name.startswith("GF_PATHS_")]
    assert not [target for _source, target in mounts(grafana) if target.startswith("/usr/share/grafana")]
    assert not (ROOT / "grafana/provisioning/plugins").exists()


def test_who_does_not_sign_in_to_grafana_looks_and_no_more() -> None:
    """A viewer, whom it calls no address for, and only under the address at which it is published."""
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    switched_off = {name for name, value in environment.items() if value == "false"}
    assert switched_off >= {"GF_UNIFIED_ALERTING_ENABLED", "GF_SNAPSHOTS_ENABLED", "GF_NEWS_NEWS_FEED_ENABLED"}
    assert environment["GF_SECURITY_DISABLE_GRAVATAR"] == "true"
    assert environment["GF_SERVER_ENFORCE_DOMAIN"] == "true"
    (port,) = SERVICES["grafana"]["ports"]
    address, published, _listening = port.split(":")
    assert environment["GF_SERVER_DOMAIN"] == address
    assert environment["GF_SERVER_ROOT_URL"] == f"http://{address}:{published}/"


def test_grafana_leads_to_where_jaeger_is_published() -> None:
    """Its exemplars, by a variable; its dashboard, by what `make up` prints, or by the default."""
    (port,) = SERVICES["jaeger"]["ports"]
    published = f"http://{port.rpartition(':')[0]}"
    assert SERVICES["grafana"]["environment"]["JAEGER_UI"] == published
    dashboard = json.loads((ROOT / "grafana/dashboards/otel-pgpool.json").read_text())
    assert {each["name"]: each["query"] for each in dashboard["templating"]["list"]}["jaeger"] == published


def test_the_shop_is_given_what_it_needs() -> None:
    """Its image holds the files that its commands name, and its address is the one that it is asked at."""
    dockerfile = (ROOT / "examples/shop/Dockerfile").read_text()
    for source in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        for pattern in source.split():
            assert list(ROOT.glob(pattern)), pattern
    assert SERVICES["load"]["image"] == SERVICES["shop"]["image"]
    assert (ROOT / "examples/shop" / SERVICES["load"]["command"][1]).is_file()
    bind = SERVICES["shop"]["environment"]["BIND"]
    assert int(bind.partition(":")[2]) in LISTENS["shop"]


def test_a_password_may_have_any_character() -> None:
    """None is put into a URL."""
    passwords = {name for name, _default in VARIABLE.findall(COMPOSE) if name.endswith("PASSWORD")}
    assert passwords
    for line in COMPOSE.splitlines():
        assert "://" not in line or not any(name in line for name in passwords), line


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    return Docker(tmp_path)


def test_make_up_waits_and_prints_the_four_addresses(docker: Docker) -> None:
    """`make up` waits until all is healthy, then says where to look."""
    printed = docker.make("up").stdout
    assert docker.asked[1] == "compose up --build --detach --wait"
    addresses = re.findall(r"http://\S+", printed)
    assert [re.match(r"http://127\.0\.0\.1:(\d+)/", address)[1] for address in addresses] == [
        "8000",
        "16686",
        "3000",
        "9090",
    ]
    assert "operation=pool.checkout" in addresses[1]
    assert "otel_pgpool.long_hold%22%3A%22true" in addresses[1]
    assert "query.startTimeMin" in asked_for(addresses[1]), "Jaeger refuses a search without a time"
    assert addresses[2].endswith("?var-jaeger=http://127.0.0.1:16686")


def passwords(docker: Docker) -> dict[str, str]:
    lines = docker.settings.read_text().split()
    return {name: value for name, _, value in (line.partition("=") for line in lines) if name.endswith("PASSWORD")}


@pytest.mark.parametrize("target", ["up", "down"])
def test_make_makes_the_passwords_that_are_missing(docker: Docker, target: str) -> None:
    """Long ones, each another, for their owner alone; what somebody has given stays, and so do they the next time."""
    docker.settings.write_text("SHOP_PORT=8001\nGRAFANA_PASSWORD=\nSHOP_PASSWORD=mine")
    docker.settings.chmod(0o644)
    assert docker.make(target).returncode == 0
    made = passwords(docker)
    assert set(made) == {name for name, _default in VARIABLE.findall(COMPOSE) if name.endswith("PASSWORD")}
    assert made["SHOP_PASSWORD"] == "mine"
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for name, value in made.items() if name != "SHOP_PASSWORD")
    assert docker.settings.stat().st_mode & 0o777 == 0o600
    assert docker.settings.read_text().startswith("SHOP_PORT=8001\n")
    assert docker.make(target).returncode == 0
    assert passwords(docker) == made


def test_make_down_removes_what_was_stored(docker: Docker) -> None:
    assert docker.make("down").returncode == 0
    assert docker.asked[1].split()[:3] == ["compose", "down", "--volumes"]


@pytest.mark.parametrize("target", ["up", "down"])
def test_make_says_what_is_missing_where_docker_has_no_compose(docker: Docker, target: str) -> None:
    """In one sentence that names what runs without; nothing else is tried."""
    docker.break_off()
    made = docker.make(target)
    assert made.returncode != 0
    assert docker.asked == ["compose version"]
    assert not docker.settings.exists()
    assert made.stdout == ""
    assert "Docker with its compose plugin" in made.stderr.splitlines()[0]
    assert "make shop" in made.stderr.splitlines()[0]
