from __future__ import annotations

from pixelkit.toml_lines import locate

TEXT = '''\
a = 1
"b c".d = 2 # x
arr = [
  1, # [
  2,
]
m = """
[x]
y = 3
"""
[t]
k = { p = 1, q = [1, 2], "r s" = { z = 1 } }
[[ds]]
n = 1
[[ds.subs]]
i = 'a#b'
[[ds]]
[[ds.subs]]
i = "x\\"y"
[ds.subs.more]
z = 1
'''


def test_lines_of_keys_and_headers() -> None:
    lines = locate(TEXT)
    assert lines["a",] == 1
    assert lines["b c", "d"] == 2
    assert lines["arr",] == 3
    assert lines["m",] == 7
    assert ("x",) not in lines and ("y",) not in lines
    assert lines["t", "k", "q"] == 12
    assert ("t", "k", "2") not in lines
    assert lines["ds", 0, "subs", 0, "i"] == 16
    assert lines["ds", 1, "subs", 0, "i"] == 19
    assert lines["ds", 1, "subs", 0, "more", "z"] == 21
