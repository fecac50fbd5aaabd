# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A small Hub server for tests: the part of the Hugging Face Hub's HTTP API that huggingface_hub, transformers and
datasets call to create, fill, tag and read repositories. Nothing but Python's library and PyYAML.

    server, hub, url = serve(folder, token="hf_test")  # 127.0.0.1 only; set HF_ENDPOINT=url and HF_HUB_DISABLE_XET=1

`hub` is the state, for tests to look at and to break:

- `hub.repos[type, id]`: the repositories, with their `commits`, `branches` and `tags`;
- `hub.organizations`: namespaces that the user may write to beside its own name;
- `hub.log`: the requests, as "METHOD path";
- `hub.cuts[part of a path] = n`: once, an answer to such a GET breaks off after n bytes; such a POST or PUT is read, but
  neither carried out nor answered.

Other than on the real Hub there are one user and one token, no Xet, no rate limits, no gated repositories, no pull
requests, and a Space is only its files. Three layers: `repositories.py` has git's part, storage and
rules, `answers.py` the JSON that clients read, and `server.py` HTTP, whose routes are the table `ROUTES` at its end.
"""

from minihub.server import serve
