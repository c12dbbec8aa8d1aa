"""`boards.csv`: what is read, and how what is wrong is named."""

import pytest
from hypothesis import given, strategies
from tests.deploy.collection_modules import module_utils

table = module_utils("board_table")

TOKEN = "A" * 43
OTHER = "B" * 43


def test_a_table_gives_its_boards_in_order() -> None:
    content = (
        "node,token,address,gateway,dns\n"
        f"press-4,{TOKEN},,,\n"
        f"press-5,{OTHER},192.168.7.20/24,192.168.7.1,192.168.7.1 9.9.9.9\n"
    )
    assert table.parse(content.encode()) == [
        table.Board("press-4", TOKEN),
        table.Board("press-5", OTHER, "192.168.7.20/24", "192.168.7.1", ("192.168.7.1", "9.9.9.9")),
    ]


def test_a_table_that_a_spreadsheet_saved_is_read() -> None:
    content = f'\ufeffnode,token\r\n"press-4","{TOKEN}"\r\n\r\n'
    assert [board.node for board in table.parse(content.encode())] == ["press-4"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "there is no board in it"),
        ("node,token\n", "there is no board in it"),
        ("node\npress-4\n", "line 1, column token: is missing"),
        ("node,token,nodes\n", "line 1, column nodes: there is no such column"),
        ("node,token,node\n", "line 1, column node: stands there twice"),
        (f"node,token\nPress,{TOKEN}\n", "line 2, column node: 'Press'"),
        (f"node,token\n-a,{TOKEN}\n", "line 2, column node: '-a'"),
        (f"node,token\n../etc,{TOKEN}\n", "line 2, column node: '../etc'"),
        ("node,token\na,short\n", "line 2, column token: is not a token"),
        (f"node,token\na,{TOKEN},\n", "line 2: 3 columns, the first line has 2"),
        (f"node,token\na,{TOKEN}\na,{OTHER}\n", "line 3, column node: node a stands in line 2"),
        (f"node,token\na,{TOKEN}\nb,{TOKEN}\n", "line 3, column token: token stands in line 2"),
        (
            f"node,token,address\na,{TOKEN},10.0.0.1/24\nb,{OTHER},10.0.0.1/8\n",
            "line 3, column address: address 10.0.0.1 stands in line 2",
        ),
        (f"node,token,address\na,{TOKEN},10.0.0.1\n", "line 2, column address: '10.0.0.1' needs"),
        (f"node,token,address\na,{TOKEN},10.0.0.256/24\n", "line 2, column address: "),
        (f"node,token,gateway\na,{TOKEN},10.0.0.1\n", "line 2, column gateway: needs an address"),
        (
            f"node,token,address,gateway\na,{TOKEN},10.0.0.1/24,10.0.1.1\n",
            "line 2, column gateway: 10.0.1.1 is not in 10.0.0.0/24",
        ),
        (f"node,token,address,dns\na,{TOKEN},10.0.0.1/24,x\n", "line 2, column dns: 'x'"),
        ('node,token\n"a,b\n', "line 2: "),
    ],
)
def test_what_is_wrong_is_named_by_line_and_column(content: str, says: str) -> None:
    with pytest.raises(table.TableError) as raised:
        table.parse(content.encode())
    assert str(raised.value).startswith(says)


def test_a_wrong_token_is_not_shown() -> None:
    with pytest.raises(table.TableError) as raised:
        table.parse(f"node,token\na,{TOKEN}!\n".encode())
    assert TOKEN not in str(raised.value)


def test_bytes_that_are_no_text_are_named_by_line() -> None:
    with pytest.raises(table.TableError, match="line 2: not UTF-8"):
        table.parse(b"node,token\n\xff,x\n")


def test_an_endless_table_is_refused_by_its_size() -> None:
    with pytest.raises(table.TableError, match="are more than"):
        table.parse(b"a" * (table.MAX_TABLE_BYTES + 1))


@given(strategies.binary(max_size=200))
def test_any_bytes_are_a_table_or_a_refusal_in_one_line(content: bytes) -> None:
    said = ""
    try:
        table.parse(b"node,token\n" + content)
    except table.TableError as exc:
        said = str(exc)
    assert "\n" not in said
