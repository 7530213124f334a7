"""One XML file: dialects that are read, and what is refused before it does harm."""

import pytest

from frcnn_plugin.data.datasets import voc_xml
from frcnn_plugin.data.datasets.voc_xml import read_annotation
from frcnn_plugin.errors import UserError

from .voc_folder import SIZE, obj


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, encoding="utf-8"):
        data = content if isinstance(content, bytes) else content.encode(encoding)
        (tmp_path / "a.xml").write_bytes(data)
        return read_annotation(tmp_path / "a.xml")

    return write_and_read


GOOD = f"<annotation>{SIZE}{obj('cat')}</annotation>"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GOOD, "utf-8-sig"),
        (GOOD.replace("<annotation>", '<annotation xmlns="http://host/voc">'), "utf-8"),
        (
            GOOD.replace("<", "<v:").replace("<v:/", "</v:").replace(">", ' xmlns:v="u">', 1),
            "utf-8",
        ),
        (GOOD.replace("annotation", "image"), "utf-8"),
        (GOOD.replace("object", "Object").replace("annotation", "Annotation"), "utf-8"),
        (f'<?xml version="1.0" encoding="UTF-16"?>{GOOD}', "utf-16"),
    ],
)
def test_dialects(read, text, encoding):
    annotation = read(text, encoding)
    assert (annotation.width, annotation.height, annotation.nested) == (100, 80, 0)
    assert [(found.name, found.box) for found in annotation.objects] == [("cat", (10, 20, 50, 60))]


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "shift_jis", "iso-8859-1"])
def test_encodings(read, encoding):
    name = "Ü" if encoding.startswith("iso") else "犬"
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation>{obj(name)}</annotation>'
    assert read(text, encoding).objects[0].name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html><body/></html>", "its outermost element is <html>, VOC's is <annotation>. Export"),
        (f"<annotations><image>{obj()}</image></annotations>", "element is <annotations>"),
        ("", "not readable as XML"),
        ("<annotation>", "not readable as XML"),
        (b"<annotation>\xff</annotation>", "not readable as XML"),
        (b'<?xml version="1.0" encoding="gbk"?><annotation>\xff', "not readable as XML"),
        ('<?xml version="1.0" encoding="no"?><annotation/>', "not readable as XML"),
        ("<!DOCTYPE html><html></html>", "it has a <!DOCTYPE>"),
        (
            '<!DOCTYPE a [<!ENTITY b "cat">]><annotation>'
            "<object><name>&b;</name></object></annotation>",
            "it has a <!DOCTYPE>",
        ),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation>&b;</annotation>',
            "it has a <!DOCTYPE>",
        ),
        (f"<annotation>{obj(chr(0x9B) + '31mcat')}</annotation>", "holds control characters"),
        (f"<annotation>{obj('two' + chr(10) + 'lines')}</annotation>", "holds control characters"),
        (f"<annotation>{obj('c' * 1001)}</annotation>", "class name of object 1 has more than"),
    ],
)
def test_what_is_refused(read, text, message):
    with pytest.raises(UserError, match=r"a\.xml: .*" + message) as caught:
        read(text)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_large_files_are_not_read(read, monkeypatch):
    monkeypatch.setattr(voc_xml, "_LARGEST", 2**20)
    with pytest.raises(UserError, match=r"not readable as XML \(it has more than 1 MiB\)"):
        read(GOOD + " " * 2**20)


def test_gb2312_is_what_files_in_its_larger_form_call_themselves(read):
    text = f'<?xml version="1.0" encoding="gb2312"?><annotation>{obj("囧")}</annotation>'
    assert read(text, "gbk").objects[0].name == "囧"


@pytest.mark.parametrize("tag", ["objects", "image"])
def test_objects_in_other_elements_are_counted(read, tag):
    annotation = read(f"<annotation>{obj()}<{tag}>{obj()}{obj()}</{tag}></annotation>")
    assert len(annotation.objects) == 1 and annotation.nested == 2


def test_values_are_fit_for_a_message(read):
    text = f"<annotation>{obj('cat', (chr(0x9B) + '31m', '9' * 5000, 3, ''))}</annotation>"
    values = read(text).objects[0].values()
    assert values == r"xmin '\x9b31m', ymin 99999999999999999999, xmax 3, ymax missing"
