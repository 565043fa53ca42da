from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedmerge.deployment.doctor import certificates
from fedmerge.deployment.doctor.finding import CLOSED, OPEN

from ..authority import Authority


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def states(folder: Path) -> dict[str, str]:
    return {finding.door: finding.state for finding in certificates.of_folder(folder, datetime.now(UTC))}


def test_what_is_right_is_closed(authority: Authority, tmp_path: Path) -> None:
    authority.write(tmp_path)
    authority.issue(tmp_path / "superlink.pem")
    assert states(tmp_path) == {
        "certificate ca.crt": CLOSED,
        "certificate superlink.pem": CLOSED,
        "key superlink.key": CLOSED,
        "issuer of superlink.pem": CLOSED,
    }


@pytest.mark.parametrize(
    ("since", "days", "said"),
    [(-9, 29, "in 28 days"), (-9, -1, "ended "), (1, 90, "holds from ")],
    ids=["ends soon", "ended", "not yet"],
)
def test_a_certificate_that_does_not_hold(
    authority: Authority, tmp_path: Path, since: float, days: float, said: str
) -> None:
    path, _ = authority.issue(tmp_path / "client.pem", since=since, days=days)
    certificate = certificates.read(path)
    assert certificate is not None
    finding = certificates.lifetime(certificate, path.name, datetime.now(UTC))
    assert finding.state == OPEN
    assert said in finding.answered


def test_a_key_that_is_not_the_certificates(authority: Authority, tmp_path: Path) -> None:
    _, other = authority.issue(tmp_path / "other.pem")
    authority.issue(tmp_path / "superlink.pem")
    (tmp_path / "superlink.key").write_bytes(other.read_bytes())
    assert states(tmp_path)["key superlink.key"] == OPEN


@pytest.mark.parametrize("content", [b"", b"no PEM"])
def test_what_can_not_be_read(authority: Authority, tmp_path: Path, content: bytes) -> None:
    authority.issue(tmp_path / "superlink.pem")
    (tmp_path / "superlink.key").write_bytes(content)
    assert states(tmp_path)["key superlink.key"] == OPEN
    (tmp_path / "superlink.pem").write_bytes(content)
    assert states(tmp_path) == {"certificate superlink.pem": OPEN}


def test_a_certificate_of_another_authority(authority: Authority, tmp_path: Path) -> None:
    Authority("another CA").issue(tmp_path / "superlink.pem")
    authority.write(tmp_path)
    assert states(tmp_path)["issuer of superlink.pem"] == OPEN
    Authority().issue(tmp_path / "superlink.pem")  # another one of the same name
    assert states(tmp_path)["issuer of superlink.pem"] == OPEN


def test_the_authoritys_key_has_no_business_here(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "ca.key").touch()
    assert states(tmp_path) == {"key of the CA": OPEN}
