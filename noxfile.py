"""Sessions that need an environment of their own: other Pythons, other framework versions.

`nox -l` lists them. A session whose interpreter is missing is skipped with a message.
"""

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.error_on_external_run = True
