//! OTLP's values and attributes as text, within the rules; see `pipeline/otlp/values.py`, which is the reference.

use std::cmp::Ordering;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::avro;
use crate::request::{Refusal, Rules};
use crate::wire::{DEPTH, Fault, Fields, MAX_VALUE_BYTES, Text, Wire, inside, text};

const CUT: &str = "…[cut]"; // ends a key or text that was cut
const LONGEST_SHORT: usize = 5; // digits of a small number
const TOO_DEEP: &str = "…[too deep]"; // stands in for a value nested deeper than max_depth
const KEY: u8 = 0x0A; // tags of LENGTH: field 1 of a KeyValue,
const VALUE: u8 = 0x12; // its field 2,
const TEXT: u8 = 0x0A; // and field 1 of an AnyValue,
const INT: u8 = 0x18; // or its field 3, of VARINT

/// Whether it can be a trace_id (of 16 bytes) or span_id (of 8); one of zeros is none.
pub fn is_id(id: &[u8], size: usize) -> bool {
    id.len() == size && id.iter().any(|&byte| byte != 0)
}

/// An AnyValue; a text, bytes and keys lie in what was sent.
#[derive(Default)]
pub enum Any<'a> {
    #[default]
    Nothing,
    Text(Text<'a>),
    Bool(bool),
    Int(i64),
    Double(f64),
    Bytes(&'a [u8]),
    Array(Vec<Any<'a>>),
    Map(Vec<(Text<'a>, Any<'a>)>),
}

impl<'a> Any<'a> {
    /// Take what one more occurrence of the message says: of the kinds the last counts, arrays and maps of one kind
    /// are joined.
    pub fn merge(&mut self, data: &'a [u8], depth: usize) -> Result<(), Fault> {
        let mut fields = Fields::new(data, depth);
        while let Some(field) = fields.next()? {
            match field {
                (1, Wire::Bytes(data)) => *self = Any::Text(text(data)?),
                (2, Wire::Varint(n)) => *self = Any::Bool(n != 0),
                (3, Wire::Varint(n)) => *self = Any::Int(n as i64),
                (4, Wire::Fixed64(bits)) => *self = Any::Double(f64::from_bits(bits)),
                (5, Wire::Bytes(data)) => {
                    let mut items = match std::mem::take(self) {
                        Any::Array(items) => items,
                        _ => Vec::new(),
                    };
                    let depth = inside(depth)?;
                    let mut values = Fields::new(data, depth);
                    while let Some(value) = values.next()? {
                        if let (1, Wire::Bytes(data)) = value {
                            let mut item = Any::Nothing;
                            item.merge(data, inside(depth)?)?;
                            items.push(item);
                        }
                    }
                    *self = Any::Array(items);
                }
                (6, Wire::Bytes(data)) => {
                    let mut items = match std::mem::take(self) {
                        Any::Map(items) => items,
                        _ => Vec::new(),
                    };
                    let depth = inside(depth)?;
                    let mut values = Fields::new(data, depth);
                    while let Some(value) = values.next()? {
                        if let (1, Wire::Bytes(data)) = value {
                            items.push(key_value(data, inside(depth)?)?);
                        }
                    }
                    *self = Any::Map(items);
                }
                (7, Wire::Bytes(data)) => *self = Any::Bytes(data),
                (8, Wire::Varint(n)) => *self = Any::Int(i64::from(n as i32)), // a reference to a text, which logs lack
                _ => {}
            }
        }
        Ok(())
    }
}

/// A KeyValue as nearly every one is sent: a short key, then a short text or a small number.
enum Short<'a> {
    Text(&'a [u8], &'a [u8]),
    Int(&'a [u8], i64),
}

#[inline]
fn short(data: &[u8]) -> Option<Short<'_>> {
    let (&[KEY, key_size @ ..0x80], rest) = data.split_first_chunk()? else { return None };
    let (key, rest) = rest.split_at_checked(key_size as usize)?;
    let (&[VALUE, value_size @ ..0x80], value) = rest.split_first_chunk()? else { return None };
    if value_size as usize != value.len() {
        return None;
    }
    match *value {
        [TEXT, size @ ..0x80, ref text @ ..] if size as usize == text.len() => Some(Short::Text(key, text)),
        [INT, n @ ..0x80] => Some(Short::Int(key, i64::from(n))),
        [INT, low @ 0x80..=0xFF, high @ ..0x80] => Some(Short::Int(key, i64::from(low & 0x7F) | i64::from(high) << 7)),
        _ => None,
    }
}

/// A KeyValue.
#[inline]
pub fn key_value(data: &[u8], depth: usize) -> Result<(Text<'_>, Any<'_>), Fault> {
    if let Some(Short::Text(key, value)) = short(data)
        && depth > 0
    {
        return Ok((text(key)?, Any::Text(text(value)?)));
    }
    let (mut key, mut value) = (Text::default(), Any::Nothing);
    let mut fields = Fields::new(data, depth);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Bytes(data)) => key = text(data)?,
            (2, Wire::Bytes(data)) => value.merge(data, inside(depth)?)?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// Limits on attributes, and how many were cut.
pub struct Limits {
    most: usize,
    key_bytes: usize,
    text_bytes: usize,
    depth: usize,
    pub cut: u64,
}

impl Limits {
    pub fn new(rules: &Rules) -> Self {
        Limits {
            most: rules.max_attributes,
            key_bytes: rules.max_key_bytes,
            text_bytes: rules.max_text_bytes,
            depth: rules.max_depth,
            cut: 0,
        }
    }

    /// The limits as bytes, to tell what was made under others.
    pub fn key(&self) -> Vec<u8> {
        [self.most, self.key_bytes, self.text_bytes, self.depth].iter().flat_map(|limit| limit.to_le_bytes()).collect()
    }

    /// A log body as a string; only its depth is limited here, since a record's size is.
    pub fn body(&mut self, out: &mut Vec<u8>, value: &Any) {
        match value {
            Any::Nothing => out.push(avro::NOTHING),
            Any::Text(text) => avro::blob(out, text.as_bytes()),
            value => {
                let mut made = Vec::new();
                self.cut += u64::from(!render(&mut made, value, MAX_VALUE_BYTES, self.depth));
                avro::blob(out, &made);
            }
        }
    }
}

/// A key or a text: as sent, or made by us, and then where in `made` it is.
#[derive(Clone, Copy)]
enum Piece<'a> {
    Sent(&'a [u8]),
    Made(usize, usize),
}

impl<'a> Piece<'a> {
    #[inline]
    fn bytes<'m>(self, made: &'m [u8]) -> &'m [u8]
    where
        'a: 'm,
    {
        match self {
            Piece::Sent(data) => data,
            Piece::Made(start, end) => made.get(start..end).unwrap_or_default(),
        }
    }
}

/// The attributes of one owner: sorted by key, each key once.
#[derive(Default)]
pub struct Attributes<'a> {
    entries: Vec<(Piece<'a>, Piece<'a>)>, // as sent,
    order: Vec<Rank>,                     // and sorted
    made: Vec<u8>,
}

struct Rank {
    first: u64, // bytes of the key
    place: usize,
}

/// The first bytes of a key: where they differ, keys sort as they do.
#[inline]
fn first_bytes(key: &[u8]) -> u64 {
    match key.first_chunk() {
        Some(first) => u64::from_be_bytes(*first),
        None => key.iter().fold(0, |first, byte| first << 8 | u64::from(*byte)) << (8 * (8 - key.len() as u32)).min(63),
    }
}

impl<'a> Attributes<'a> {
    /// Read KeyValues, within the limits; what is over the count is not looked into. Gives how many that were.
    pub fn read(&mut self, raws: &[&'a [u8]], limits: &mut Limits) -> Result<usize, Refusal> {
        self.entries.clear();
        self.order.clear();
        self.made.clear();
        let over = raws.len().saturating_sub(limits.most);
        limits.cut += over as u64;
        let mut sorted = true;
        for raw in raws.iter().take(limits.most) {
            let (key, value) = match short(raw) {
                Some(Short::Text(key, value)) if key.len() <= limits.key_bytes && value.len() <= limits.text_bytes => {
                    let texts = text(key).and_then(|key| Ok((key, text(value)?)));
                    let (key, value) = texts.map_err(|fault| fault.of("KeyValue"))?;
                    (Piece::Sent(key.as_bytes()), Piece::Sent(value.as_bytes()))
                }
                Some(Short::Int(key, n)) if key.len() <= limits.key_bytes && limits.text_bytes >= LONGEST_SHORT => {
                    let key = text(key).map_err(|fault| fault.of("KeyValue"))?;
                    (Piece::Sent(key.as_bytes()), self.number(n))
                }
                _ => self.any(raw, limits)?,
            };
            let rank = Rank { first: first_bytes(key.bytes(&self.made)), place: self.entries.len() };
            self.entries.push((key, value));
            if let Some(last) = self.order.last() {
                sorted &= self.compared(last, &rank).is_lt();
            }
            self.order.push(rank);
        }
        if !sorted {
            self.sort();
        }
        Ok(over)
    }

    /// Key and text of any KeyValue.
    fn any(&mut self, raw: &'a [u8], limits: &mut Limits) -> Result<(Piece<'a>, Piece<'a>), Refusal> {
        let (key, value) = key_value(raw, DEPTH).map_err(|fault| fault.of("KeyValue"))?;
        let (key, key_whole) = self.within(key.as_bytes(), limits.key_bytes);
        let (text, text_whole) = self.value(&value, limits);
        limits.cut += u64::from(!(key_whole && text_whole));
        Ok((key, text))
    }

    /// By key; of equal keys the last stays.
    fn sort(&mut self) {
        let mut order = std::mem::take(&mut self.order);
        order.sort_unstable_by(|a, b| self.compared(a, b).then(b.place.cmp(&a.place)));
        order.dedup_by(|later, first| self.compared(later, first).is_eq());
        self.order = order;
    }

    #[inline]
    fn compared(&self, a: &Rank, b: &Rank) -> Ordering {
        a.first.cmp(&b.first).then_with(|| self.key(a).cmp(self.key(b)))
    }

    fn key(&self, rank: &Rank) -> &[u8] {
        self.entries.get(rank.place).map_or(&[], |(key, _)| key.bytes(&self.made))
    }

    fn number(&mut self, n: i64) -> Piece<'a> {
        let start = self.made.len();
        self.made.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
        Piece::Made(start, self.made.len())
    }

    fn value(&mut self, value: &Any<'a>, limits: &Limits) -> (Piece<'a>, bool) {
        match value {
            Any::Nothing => (Piece::Sent(&[]), true),
            Any::Text(text) => self.within(text.as_bytes(), limits.text_bytes),
            Any::Int(n) => {
                let start = self.made.len();
                self.number(*n);
                self.made_within(start, limits.text_bytes)
            }
            value => {
                let start = self.made.len();
                let whole = render(&mut self.made, value, limits.text_bytes, limits.depth);
                let (piece, text_whole) = self.made_within(start, limits.text_bytes);
                (piece, whole && text_whole)
            }
        }
    }

    /// What was sent, or what fits of it with the marker behind, and whether it is whole.
    #[inline]
    fn within(&mut self, data: &'a [u8], most: usize) -> (Piece<'a>, bool) {
        if data.len() <= most {
            return (Piece::Sent(data), true);
        }
        let start = self.made.len();
        self.made.extend_from_slice(data);
        self.made_within(start, most)
    }

    fn made_within(&mut self, start: usize, most: usize) -> (Piece<'a>, bool) {
        let whole = self.made.len() - start <= most;
        if !whole {
            let mut end = start + most.saturating_sub(CUT.len());
            while end > start && self.made.get(end).is_some_and(|byte| byte & 0xC0 == 0x80) {
                end -= 1;
            }
            self.made.truncate(end);
            self.made.extend_from_slice(CUT.as_bytes());
        }
        (Piece::Made(start, self.made.len()), whole)
    }

    /// Keys and texts.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let entries = self.order.iter().filter_map(|rank| self.entries.get(rank.place));
        entries.map(|(key, text)| (key.bytes(&self.made), text.bytes(&self.made)))
    }

    /// As an Avro map.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>) {
        if !self.order.is_empty() {
            avro::size(out, self.order.len());
            for (key, text) in self.iter() {
                avro::blob(out, key);
                avro::blob(out, text);
            }
        }
        out.push(avro::NOTHING);
    }
}

/// One value as text, and whether nothing in it was nested too deep.
///
/// A text longer than `most` is right up to there and may be anything after, since it will be cut. Its size, and so
/// the work, is bounded by `most`: `left` falls by no more than the text grows, counted in characters.
fn render(out: &mut Vec<u8>, value: &Any, most: usize, depth: usize) -> bool {
    let mut tree = Tree { out, left: most as i64, whole: true, max_depth: depth };
    match value {
        Any::Bytes(data) => {
            tree.left -= 1;
            tree.bytes(data, false);
        }
        Any::Double(number) if !number.is_finite() => {
            tree.out.extend_from_slice(not_finite(*number).as_bytes());
        }
        value => tree.plain(value, 1),
    }
    tree.whole
}

struct Tree<'o> {
    out: &'o mut Vec<u8>,
    left: i64,
    whole: bool,
    max_depth: usize,
}

impl Tree<'_> {
    fn plain(&mut self, value: &Any, depth: usize) {
        if depth > self.max_depth {
            self.whole = false;
            self.string(TOO_DEEP, true);
            return;
        }
        self.left -= 1;
        match value {
            Any::Nothing => self.out.extend_from_slice(b"null"),
            Any::Text(text) => self.string(text.as_str(), true),
            Any::Bool(true) => self.out.extend_from_slice(b"true"),
            Any::Bool(false) => self.out.extend_from_slice(b"false"),
            Any::Int(n) => self.out.extend_from_slice(itoa::Buffer::new().format(*n).as_bytes()),
            Any::Double(number) if number.is_finite() => double(self.out, *number),
            Any::Double(number) => json_string(self.out, not_finite(*number)),
            Any::Bytes(data) => self.bytes(data, true),
            Any::Array(items) => {
                self.out.push(b'[');
                for (n, item) in items.iter().enumerate() {
                    if self.left < 0 {
                        break;
                    }
                    if n > 0 {
                        self.out.push(b',');
                    }
                    self.plain(item, depth + 1);
                }
                self.out.push(b']');
            }
            Any::Map(items) => self.map(items, depth + 1),
        }
    }

    fn map(&mut self, items: &[(Text, Any)], depth: usize) {
        let mut sorted: Vec<_> = items.iter().rev().collect();
        sorted.sort_by_key(|(key, _)| *key);
        sorted.dedup_by_key(|(key, _)| *key);
        self.out.push(b'{');
        for (n, (key, value)) in sorted.into_iter().enumerate() {
            if self.left < 0 {
                break;
            }
            let key = key.as_str();
            self.left -= key.chars().count() as i64;
            if n > 0 {
                self.out.push(b',');
            }
            json_string(self.out, key);
            self.out.push(b':');
            self.plain(value, depth);
        }
        self.out.push(b'}');
    }

    fn bytes(&mut self, data: &[u8], quoted: bool) {
        let most = self.left.max(0) as usize + 8;
        let text = STANDARD.encode(data.get(..most).unwrap_or(data));
        self.string(&text, quoted);
    }

    fn string(&mut self, text: &str, quoted: bool) {
        let most = self.left.max(0) as usize + 2;
        let end = text.char_indices().nth(most).map_or(text.len(), |(at, _)| at);
        self.left -= text.chars().count() as i64;
        let kept = text.get(..end).unwrap_or(text);
        if quoted {
            json_string(self.out, kept);
        } else {
            self.out.extend_from_slice(kept.as_bytes());
        }
    }
}

fn not_finite(number: f64) -> &'static str {
    if number.is_nan() {
        "NaN"
    } else if number > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

/// The shortest text that reads back equal, of two as near the even one, with a point or an exponent: as Python writes it.
fn double(out: &mut Vec<u8>, number: f64) {
    let mut buffer = ryu::Buffer::new();
    let shortest = buffer.format_finite(number);
    let magnitude = shortest.trim_start_matches('-');
    if let Some((mantissa, exponent)) = shortest.split_once('e') {
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        let _ = write!(out, "{mantissa}e{sign}{digits:0>2}"); // into memory: it cannot fail
    } else if let Some((first, rest)) = magnitude.strip_prefix("0.0000").and_then(|digits| digits.split_at_checked(1)) {
        let sign = if number < 0.0 { "-" } else { "" };
        let point = if rest.is_empty() { "" } else { "." };
        let _ = write!(out, "{sign}{first}{point}{rest}e-05"); // into memory: it cannot fail
    } else {
        out.extend_from_slice(shortest.as_bytes());
    }
}

fn json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for &byte in text.as_bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            0..0x20 => {
                let _ = write!(out, "\\u{byte:04x}"); // into memory: it cannot fail
            }
            byte => out.push(byte),
        }
    }
    out.push(b'"');
}
