"""Signed tokens: what is refused, rotation, revocation, and that nothing but a good token gets in."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError
from serving.access import Principal, Refused
from serving.security.keys import key_ring_file, read_key_ring, read_private_key, retire, rotate
from serving.security.settings import SecuritySettings
from serving.security.tokens import JwtAuthenticator, TokenIssuer, revoke


class Site:
    """A folder with one key, an issuer and an authenticator that look at their files every time."""

    def __init__(self, folder: Path) -> None:
        self.settings = SecuritySettings(mode="jwt", folder=folder, reread_seconds=0.0)
        self.keys, self.revoked = folder / "keys", folder / "revoked.json"
        self.kid = rotate(self.keys)
        self.issuer, self.authenticator = TokenIssuer(self.settings), JwtAuthenticator(self.settings)
        ring = read_key_ring(key_ring_file(self.keys))
        self.private = read_private_key(self.keys, ring.newest)

    def sign(self, change: Callable[[dict[str, Any]], None] = lambda claims: None, key: Any = None,
             algorithm: str = "EdDSA", headers: dict[str, Any] | None = None) -> bytes:
        """A token of good claims after `change`."""
        now = time.time()
        claims: dict[str, Any] = {"iss": "algospace", "aud": "algospace-decisions", "sub": "ann", "role": "trader",
                                  "iat": now, "exp": int(now + 60), "jti": "0" * 32}
        change(claims)
        return jwt.encode(claims, key or self.private, algorithm=algorithm,
                          headers={"kid": self.kid} | (headers or {})).encode()

    def refuses(self, token: bytes) -> bool:
        """Whether the answer is 401; anything else but an answer is an error."""
        try:
            self.authenticator.authenticate(token)
        except Refused as refusal:
            return refusal.status == 401
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def _segment(value: Any) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def test_a_good_token_names_its_principal(site: Site) -> None:
    token, claims = site.issuer.issue("ann", "trader", 60)
    assert site.authenticator.authenticate(token.encode()) == Principal("ann", "trader", claims["jti"])
    assert site.authenticator.authenticate(site.sign()).role == "trader"


@pytest.mark.parametrize("change", [
    {"exp": 1}, {"exp": int(time.time()) - 30}, {"iat": time.time() + 3600}, {"nbf": time.time() + 3600},
    {"aud": "another"}, {"aud": ["algospace-decisions", "another"]}, {"iss": "another"}, {"role": "owner"},
    {"role": ["admin"]}, {"sub": ""}, {"sub": "a b"}, {"sub": 7}, {"jti": ""}, {"jti": 5}, {"exp": "soon"},
    {"iat": None}, {"exp": 1e400},
], ids=str)
def test_wrong_claims_are_refused(site: Site, change: dict[str, Any]) -> None:
    assert site.refuses(site.sign(lambda claims: claims.update(change)))


@pytest.mark.parametrize("name", ["aud", "iss", "exp", "iat", "jti", "sub", "role"])
def test_every_claim_is_required(site: Site, name: str) -> None:
    assert site.refuses(site.sign(lambda claims: claims.pop(name)))


def test_a_clock_a_little_behind_is_forgiven(site: Site) -> None:
    assert not site.refuses(site.sign(lambda claims: claims.update(exp=int(time.time()) - 2)))
    assert not site.refuses(site.sign(lambda claims: claims.update(iat=time.time() + 2)))


def test_forged_tokens_are_refused(site: Site) -> None:
    good = site.sign()
    header, claims, signature = good.split(b".")
    assert site.refuses(site.sign(key=Ed25519PrivateKey.generate()))  # someone else's key under our kid
    assert site.refuses(site.sign(headers={"kid": "0" * 16}))
    assert site.refuses(site.sign(headers={"crit": ["x"], "x": 1}))
    assert site.refuses(site.sign(headers={"jku": "https://elsewhere"}))
    assert site.refuses(jwt.encode({"sub": "ann"}, site.private, algorithm="EdDSA").encode())  # no kid
    other = json.loads(base64.urlsafe_b64decode(claims + b"=="))
    assert site.refuses(b".".join((header, _segment(other | {"role": "admin"}), signature)))
    assert site.refuses(header + b"." + claims + b".")
    assert site.refuses(good + b"=")
    assert site.refuses(good + b"A" * 5000)
    nested = base64.urlsafe_b64encode(b"[" * 2900).rstrip(b"=")
    assert site.refuses(nested + b"." + claims[:10] + b"." + b"AA")


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE"])
def test_unsigned_tokens_are_refused(site: Site, name: str) -> None:
    claims, signature = site.sign().split(b".")[1:]
    head = _segment({"alg": name, "typ": "JWT", "kid": site.kid})
    assert site.refuses(head + b"." + claims + b".")
    assert site.refuses(head + b"." + claims + b"." + signature)


def test_the_public_key_is_no_shared_secret(site: Site) -> None:
    """The classic confusion: HMAC with what everybody may know."""
    public = site.private.public_key()
    claims = site.sign().split(b".")[1]
    forms = [public.public_bytes(Encoding.Raw, PublicFormat.Raw),
             public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
             public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)]
    for secret in forms:
        signed = _segment({"alg": "HS256", "typ": "JWT", "kid": site.kid}) + b"." + claims
        code = base64.urlsafe_b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).rstrip(b"=")
        assert site.refuses(signed + b"." + code)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.lists(st.binary(max_size=60), min_size=3, max_size=3).map(
    lambda parts: b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts))))
def test_random_bytes_are_refused_with_401(site: Site, token: bytes) -> None:
    assert site.refuses(token)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "x5u"]),
                       st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20),
                                 st.sampled_from(["EdDSA", "JWT", "HS256"]), st.lists(st.text(max_size=3)))))
def test_random_headers_are_refused_with_401(site: Site, header: dict[str, Any]) -> None:
    _, claims, signature = site.sign().split(b".")
    if header.get("kid") != site.kid:
        assert site.refuses(_segment(header) + b"." + claims + b"." + signature)


def test_both_keys_live_through_a_rotation_until_the_old_one_is_retired(tmp_path: Path) -> None:
    site = Site(tmp_path)
    old = site.issuer.issue("ann", "trader", 60)[0].encode()
    assert not site.refuses(old)
    kid = rotate(site.keys)
    new = site.issuer.issue("ann", "trader", 60)[0].encode()
    assert jwt.get_unverified_header(new)["kid"] == kid != site.kid
    assert not site.refuses(new)
    assert not site.refuses(old)
    assert [p.stem for p in site.keys.glob("*.pem")] == [kid]
    with pytest.raises(ConfigError, match="signs"):
        retire(site.keys, kid)
    retire(site.keys, site.kid)
    assert site.refuses(old)  # though it was verified, and remembered, before
    assert not site.refuses(new)


def test_a_revoked_token_is_refused_and_others_are_not(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (first, claims), (second, _) = (site.issuer.issue("ann", "trader", 60) for _ in range(2))
    assert not site.refuses(first.encode())
    revoke(site.revoked, claims["jti"])
    assert site.refuses(first.encode())
    assert not site.refuses(second.encode())
    revoke(site.revoked, user="ann")
    assert site.refuses(second.encode())
    time.sleep(0.002)
    assert not site.refuses(site.issuer.issue("ann", "trader", 60)[0].encode())
    assert not site.refuses(site.issuer.issue("bob", "trader", 60)[0].encode())


def test_a_revocation_outlives_its_file(tmp_path: Path) -> None:
    """Damaged or deleted: what was revoked stays so in a running service, and the others keep working."""
    site = Site(tmp_path)
    (first, claims), (second, _) = (site.issuer.issue("ann", "trader", 60) for _ in range(2))
    revoke(site.revoked, claims["jti"])
    assert site.refuses(first.encode())
    site.revoked.write_text("{")
    assert site.refuses(first.encode())
    site.revoked.unlink()
    assert site.refuses(first.encode())
    assert not site.refuses(second.encode())


def test_a_revocation_that_could_not_be_read_once_is_read_again(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    token = site.sign()
    assert not site.refuses(token)
    revoke(site.revoked, user="ann")

    def too_many(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as full:
        full.setattr("builtins.open", too_many)
        assert not site.refuses(token)  # what was known stays in force
    assert site.refuses(token)


@pytest.mark.parametrize("back", [False, True])
def test_a_list_that_is_taken_away_while_it_is_read_is_no_empty_one(tmp_path: Path, back: bool) -> None:
    site = Site(tmp_path)
    token = site.issuer.issue("ann", "trader", 60)[0].encode()
    revoke(site.revoked, user="ann")
    assert site.refuses(token)
    revoke(site.revoked, user="bob")  # there is something new to read
    watched, text = site.authenticator._revoked, site.revoked.read_text()
    read = watched._read

    def too_late(path: Path) -> Any:
        site.revoked.unlink()
        found = read(path)
        if back:
            site.revoked.write_text(text)
        watched._read = read
        return found

    watched._read = too_late
    assert site.refuses(token)
    assert site.refuses(token)


def test_a_remembered_token_expires(tmp_path: Path) -> None:
    site = Site(tmp_path)
    now = time.time()
    clock = [now]
    authenticator = JwtAuthenticator(site.settings, clock=lambda: clock[0])
    token = site.issuer.issue("ann", "viewer", 60)[0].encode()
    assert authenticator.authenticate(token).user == "ann"
    clock[0] = now + 70
    with pytest.raises(Refused, match="expired"):
        authenticator.authenticate(token)


def test_a_remembered_token_costs_microseconds(site: Site) -> None:
    token = site.sign()
    authenticator = JwtAuthenticator(SecuritySettings(mode="jwt", folder=site.settings.folder))
    authenticator.authenticate(token)
    best = 1.0
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(50):
            authenticator.authenticate(token)
        best = min(best, (time.perf_counter() - started) / 50)
    assert best < 100e-6


@pytest.mark.parametrize("fault", ["missing", "corrupt", "altered", "writable", "empty"])
def test_a_faulty_key_ring_is_one_line(tmp_path: Path, fault: str) -> None:
    site = Site(tmp_path)
    path = key_ring_file(site.keys)
    text = path.read_text()
    if fault == "missing":
        path.unlink()
    elif fault == "writable":
        path.chmod(0o666)
    else:
        public = json.loads(text)["keys"][0]["public"]
        path.write_text({"corrupt": text[:-9], "altered": text.replace(public, public[::-1]),
                         "empty": '{"keys": []}'}[fault])
    with pytest.raises(ConfigError) as error:
        JwtAuthenticator(site.settings)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_private_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    site = Site(tmp_path)
    pem = site.keys / f"{site.kid}.pem"
    assert pem.stat().st_mode & 0o777 == 0o600
    pem.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        TokenIssuer(site.settings)
    pem.unlink()
    with pytest.raises(ConfigError, match="only where the private key is"):
        TokenIssuer(site.settings)
    JwtAuthenticator(site.settings)  # verifying needs none
