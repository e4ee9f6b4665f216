# SPDX-License-Identifier: Apache-2.0
"""GETS FROM WHOM: the issuers, one kind of credential each. Given to `JIT`; nothing imports them."""

from jitwi.issuers.jwt_svid import BearerJwtSvid, JwtSvid
from jitwi.issuers.task_tokens import TaskToken, TaskTokens

__all__ = ["BearerJwtSvid", "JwtSvid", "TaskToken", "TaskTokens"]
