import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_fleet.errors import RequestError
from shoal_fleet.node_csv import MAX_BYTES, Row, parse

GOOD = b'\xef\xbb\xbfnode, site,hw,alias\r\npress-4,oslo,rpi4,"Press 4, hall B"\r\n\r\npress-5,,rpi5,\r\n'


def test_a_list_as_a_spreadsheet_writes_it_is_read():
    with pytest.raises(RequestError, match="line 2, column alias: 'Press 4, hall B' is no alias"):
        parse(GOOD)
    assert parse(GOOD.replace(b"4, hall", b"4 hall")) == [
        Row(2, "press-4", "Press 4 hall B", {"site": "oslo", "hw": "rpi4"}),
        Row(4, "press-5", "", {"hw": "rpi5"}),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the list is empty"),
        ("site\noslo\n", "line 1: no column is called 'node'"),
        ("node,site,site\n", "line 1, column 3: 'site' is there twice"),
        ("node,Site!\n", "line 1, column 2: 'Site!' is not a label"),
        ("node,site\nn1,oslo\nn2\n", "line 3: 1 cells, but 2 columns"),
        ("node,site\nn1,oslo,x\n", "line 2: 3 cells, but 2 columns"),
        ("node,site\nN1,oslo\n", "line 2, column node: "),
        ("node,site\n,oslo\n", "line 2, column node: "),
        ("node,site\nn1,os lo\n", "line 2, column site: 'os lo' is not a label's value"),
        ("node,group\nn1,all\n", "line 2, column group: 'all' is the group"),
        ("node\nn1\nn2\nn1\n", "line 4, column node: 'n1' is in line 2, too"),
        ("node,alias\nn1,a\nn2,a\n", "line 3, column alias: 'a' is in line 2, too"),
        ('node\n"n1\n', "line 2: "),
        (f"node,site\nn1,{'x' * 300}\n", "line 2, column site: longer than 256"),
        ("node," + ",".join(f"k{i}" for i in range(200)) + "\n", "line 1: a node has at most"),
    ],
)
def test_a_mistake_is_one_line_that_says_where_it_is(text, said):
    with pytest.raises(RequestError) as refused:
        parse(text.encode())
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_and_lists_without_an_end_are_refused():
    with pytest.raises(RequestError, match=r"line 2: byte 8 is not UTF-8 text"):
        parse(b"node\nn1\n\xff\n".replace(b"n1\n\xff", b"n1 \xff"))
    with pytest.raises(RequestError, match="larger than"):
        parse(b"x" * (MAX_BYTES + 1))


@given(st.binary(max_size=300))
def test_whatever_comes_is_a_list_or_a_request_error(data):
    try:
        rows = parse(b"node,site\n" + data)
    except RequestError as exc:
        assert "\n" not in str(exc)  # noqa: PT017
    else:
        assert len({row.node for row in rows}) == len(rows)
