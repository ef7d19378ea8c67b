"""No warning and no error shows the password of an address, whatever marks it has."""

import pytest

from tensorstate_callbacks.loggers.passwords import hide_passwords
from tensorstate_callbacks.loggers.tracker import describe_error

PASSWORDS = [
    "S3cret",
    "S3cret/T0p",
    "S3cret#T0p",
    "S3cret?T0p",
    "S3cret@T0p",
    "@S3cret@/#?T0p/",
    "S3cret%2FT0p%40",
    "S3cret:T0p",
    "S3cret'T0p",
    'S3cret"T0p',
    "S3cret)T0p",
    "S3cret;T0p",
    "S3cret&T0p",
    "S3cret//T0p",
]
TEXTS = [
    "{}",
    "API request to {}/api/2.0/mlflow failed with exception x",
    "could not open '{}'.",
    "({}), ({})",
    "parse error in {}: use another",
]


def shown(text):
    return [part for part in ("S3cret", "T0p", "me:") if part in text]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["http", "https", "postgresql+psycopg2", "mysql"])
def test_users_and_passwords_of_addresses(password, scheme):
    address = f"{scheme}://me:{password}@host:5000/db"
    assert hide_passwords(address) == hide_passwords(address, address) == f"{scheme}://host:5000/db"
    for text in TEXTS:
        hidden = hide_passwords(text.format(address, address))
        assert not shown(hidden)
        assert "host:5000/db" in hidden
        assert not shown(describe_error(ConnectionError(text.format(address, address))))


@pytest.mark.parametrize(
    "password", ["S3cret", "S3cret/T0p", "S3cret#T0p@", "S3cret%2FT0p", "S3cret?T0p"]
)
@pytest.mark.parametrize(
    "pair",
    [
        "password={}",
        "PASSWORD={}",
        "PWD={}",
        "pwd:{}",
        "pwd: {}",
        "passwd={}",
        "pass={}",
        "sslpassword={}",
        "access_token={}",
        "api_key={}",
        "client_secret={}",
        "UID=me;PWD={}",
        "UID=me;PWD={{{};T0p}}",
        "odbc_connect=UID%3Dme%3BPWD%3D{}%3B",
        '"password": "{} T0p"',
        "'token': '{} T0p'",
        "MLFLOW_TRACKING_PASSWORD={}",
        "Authorization: Basic {}",
        "{{'Authorization': 'Bearer {}'}}",
    ],
)
def test_passwords_after_a_name(pair, password):
    for text in ("{}", "https://host/db?user=you&{}", "could not open ({}), sorry", "'{}'."):
        hidden = hide_passwords(text.format(pair.format(password)))
        assert not shown(hidden)
        assert "***" in hidden or hidden == "https://"


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "text",
    [
        "Port could not be cast to integer value as '{0}'",
        "HTTPConnectionPool(host='host', port=80): Max retries exceeded with url: /{0}@host/api",
        "no host {1} at {2}",
        "user me:{0} unknown",
    ],
)
def test_parts_of_the_password_of_a_known_address(text, password):
    from urllib.parse import quote, unquote

    address = f"http://me:{password}@host"
    parts = [password.partition(mark)[0] for mark in "/#?@:" if password.partition(mark)[0]]
    for part in [password, *parts]:
        words = text.format(part, quote(part, safe=""), unquote(part))
        assert not {"S3cret", "T0p"} & {*shown(hide_passwords(words, address))}


def test_a_password_with_a_space_in_a_known_address():
    address = "http://me:S3cret T0p@host:5000"
    assert hide_passwords(address, address) == "http://host:5000"
    assert not shown(hide_passwords("no port 'S3cret' or S3cret%20T0p, S3cret+T0p", address))
    assert not shown(hide_passwords("x?password=S3cret/T0p: T0p", "db?password=S3cret/T0p"))


@pytest.mark.parametrize(
    "text",
    [
        "https://mlflow.example.org:5000/x?y=1#z",
        "sqlite:////home/me@work/mlflow.db",
        "file:///home/me@work/mlruns",
        "no space left on device: '/home/me@work/run.json'",
        "write to me@example.org",
        "password authentication failed for user",
        "the first pass is over",
    ],
)
def test_other_texts_stay(text):
    assert hide_passwords(text) == hide_passwords(text, "http://host") == text
    if "://" in text:
        assert hide_passwords(text, text) == text


def test_errors_whose_own_text_fails():
    class FailsError(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    assert describe_error(FailsError()) == "FailsError: it has no text"
