"""Hide names and passwords in addresses, and in texts with addresses."""

import re
from urllib.parse import quote, quote_plus, unquote

_KEYS = r"(?:pass(?:word|wd|phrase|code)?|pwd|token|secret|api[_-]?key|access[_-]?key|credentials?)"
# The key, what stands between it and the value, and the value to the end of the word: passwords may
# hold any mark, so that it is better to hide too much.
_VALUE = re.compile(
    rf"""((?<![a-z]){_KEYS}|(?:password|passwd|pwd|token|secret|_key))"""
    r"""(["']?\s*(?:[=:]|%3[AD])\s*)"""
    r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{[^}]*\}[^&\s]*|[^&\s]*[^&\s'")\]}>.,;:])""",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?)(?:\w+\s+)?[^\s'\"]+", re.I)
# To the last @ of the word: a password that was not escaped may hold / # ? and @ itself.
# Behind three slashes stands a path.
_USER = re.compile(r"(?<!/)//(?!/)\S*@|%2F%2F\S*?%40", re.IGNORECASE)


def hide_passwords(text: str, address: str = "") -> str:
    """Return an address, or a text with addresses, without the names and passwords in them.

    Args:
        text: The address or text.
        address: An address whose password is hidden wherever it stands, in part or escaped too: a
            password with `/` or `#` in it is taken apart by whoever reads the address.

    Examples:
        >>> hide_passwords("https://me:secret@mlflow.example.org:5000/x")
        'https://mlflow.example.org:5000/x'
        >>> hide_passwords("postgresql://db/mlflow?user=me&password=secret")
        'postgresql://db/mlflow?user=me&password=***'
        >>> hide_passwords("no port 'se' of host me", "http://me:se/cret@host")
        "no port '***' of host me"
    """
    user = _find_user(address)
    if user:
        text = text.replace(f"{user}@", "")
    text = _AUTHORIZATION.sub(r"\1***", text)
    text = _VALUE.sub(r"\1\2***", text)
    text = _USER.sub(lambda found: "//" if found[0].startswith("//") else "%2F%2F", text)
    for secret in _find_secrets(address, user):
        # Short parts are hidden as words only: they may be in any other.
        edge = r"\b" if len(secret) < 4 and secret.isalnum() else ""
        text = re.sub(f"{edge}{re.escape(secret)}{edge}", "***", text)
    return text


def _find_user(address: str) -> str:
    """Return what stands before the last `@` of an address, names and passwords."""
    before, at, _ = address.rpartition("@")
    user = before.partition("://")[2] or before if at else ""
    return "" if user.startswith("/") else user


def _find_secrets(address: str, user: str) -> list[str]:
    """Return the passwords of an address, and the parts that they may be taken apart into."""
    given = [found[3].strip("\"'{}") for found in _VALUE.finditer(address)]
    found = {user}
    for value in (user.partition(":")[2], *given):
        for form in (value, unquote(value)):
            for part in (form, *re.split(r"[/#?@:&;\s]+", form)):
                found |= {part, quote(part), quote(part, safe=""), quote_plus(part)}
    # One letter would be hidden everywhere.
    return sorted((secret for secret in found if len(secret) > 1), key=len, reverse=True)
