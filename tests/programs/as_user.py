"""The command line of trapline as another user: `as_user.py UID WORD...`, run by root.

All imports come before the change of user: Python itself may lie in a directory that is root's.
"""

from __future__ import annotations

import ctypes
import encodings.ascii
import glob
import os
import pkgutil
import pwd
import sys
from importlib import import_module

import psutil
import trio
import xxhash
import zstandard

import trapline.platform
import trapline.sentry
from trapline.sentry.cli.main import main

USED_LATER = (encodings.ascii, glob, pwd, psutil, trio, xxhash, zstandard)

for package in (trapline.platform, trapline.sentry):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        import_module(found.name)
uid = int(sys.argv[1])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, as after an exec by that user
sys.argv[1:2] = []
sys.exit(main(sys.argv[1:]))
