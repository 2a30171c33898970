"""The page of all synthetic results, written once for every test that reads it."""

import pytest
from parsed_page import Page
from synthetic_results import make_results

from warmfree.report import write_report


@pytest.fixture(scope="session")
def full_html(tmp_path_factory):
    return write_report(make_results(), tmp_path_factory.mktemp("full")).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def full_page(full_html):
    return Page(full_html)
