//! Protobuf's wire format: one level of a message walked, and the fields of a message read.
//!
//! Source: the protobuf encoding; what is malformed is what protobuf's own C parser (upb) calls so.

use crate::request::Refusal;
use crate::varint::LONGEST;

pub const MAX_VALUE_BYTES: usize = 900_000; // a Kafka message; brokers take 1 MB
pub const DEPTH: usize = 100; // messages and groups inside one another, in what is parsed whole
const LENGTH: u64 = 2;
const SHORT_VARINT_BYTES: usize = 5; // of a tag or a length

/// A message that is walked and not parsed whole: bits of the field numbers of its children and of its other fields,
/// and which count of a request its children are.
pub struct Part {
    pub children: u32,
    pub shell: u32,
    pub counted: Counted,
}

/// What a request may hold at most `max_records` of, each.
#[derive(Clone, Copy)]
pub enum Counted {
    Resources,
    Scopes,
    Metrics,
    DataOfMetrics,
    Records,
}

impl Counted {
    pub const ALL: usize = 5;

    pub fn name(self) -> &'static str {
        match self {
            Counted::Resources => "resources",
            Counted::Scopes => "scopes",
            Counted::Metrics => "metrics",
            Counted::DataOfMetrics => "data of metrics",
            Counted::Records => "records",
        }
    }
}

pub const fn bits(numbers: &[u32]) -> u32 {
    let mut found = 0;
    let mut rest = numbers;
    while let [number, others @ ..] = rest {
        found |= 1 << *number;
        rest = others;
    }
    found
}

fn within(numbers: u32, number: u64) -> bool {
    number < 32 && numbers & (1 << number) != 0
}

/// One child: its field number, and where in the body it is.
#[derive(Clone, Copy)]
pub struct Child {
    pub number: u64,
    pub start: usize,
    pub end: usize,
}

/// What one occurrence of a `Part` holds: the fields that are no children, as sent (None where they are larger than
/// MAX_VALUE_BYTES), the first children, and how many more there are.
pub struct Level {
    pub shell: Option<Vec<u8>>,
    pub children: Vec<Child>,
    pub more: usize,
}

/// Walk `body` from `start` to `end`, listing at most `most` children and looking into none.
pub fn level(part: &Part, body: &[u8], (start, end): (usize, usize), most: usize) -> Result<Level, Refusal> {
    let mut at = start;
    let mut found = Level { shell: None, children: Vec::new(), more: 0 };
    let (mut shell, mut shell_bytes) = (Vec::new(), 0);
    while at < end {
        let start = at;
        let (tag, after) = varint(body, at, SHORT_VARINT_BYTES)?;
        let number = tag >> 3;
        if tag & 7 == LENGTH {
            let (size, inner) = varint(body, after, SHORT_VARINT_BYTES)?;
            at = inner.saturating_add(size as usize);
            if within(part.children, number) {
                if found.children.len() < most {
                    found.children.push(Child { number, start: inner, end: at });
                } else {
                    found.more += 1;
                }
                continue;
            }
        } else {
            at = skip(body, after, tag)?;
        }
        if within(part.shell, number) {
            shell_bytes += at - start;
            if shell_bytes <= MAX_VALUE_BYTES {
                shell.extend_from_slice(body.get(start..at.min(body.len())).unwrap_or_default());
            }
        } else if number == 0 || number >= 1 << 29 {
            return Err(Refusal::number(number));
        }
    }
    if at > end {
        return Err(Refusal::cut_short());
    }
    if shell_bytes <= MAX_VALUE_BYTES {
        found.shell = Some(shell);
    }
    Ok(found)
}

/// An unsigned varint and the place after it.
#[inline]
fn varint(body: &[u8], at: usize, longest: usize) -> Result<(u64, usize), Refusal> {
    match body.get(at) {
        Some(&byte) if byte < 0x80 => Ok((u64::from(byte), at + 1)),
        _ => long_varint(body, at, longest),
    }
}

fn long_varint(body: &[u8], at: usize, longest: usize) -> Result<(u64, usize), Refusal> {
    let mut value = 0u64;
    for n in 0..longest {
        let byte = *body.get(at + n).ok_or_else(Refusal::cut_short)?;
        value |= u64::from(byte & 0x7F).wrapping_shl(7 * n as u32);
        if byte < 0x80 {
            return Ok((value, at + n + 1));
        }
    }
    Err(Refusal::malformed("a varint is too long"))
}

/// The place after a field of any wire type but LENGTH; a group is followed to its own end.
fn skip(body: &[u8], mut at: usize, mut tag: u64) -> Result<usize, Refusal> {
    let mut open: Vec<u64> = Vec::new();
    loop {
        match tag & 7 {
            0 => at = varint(body, at, LONGEST)?.1,
            1 => at += 8,
            LENGTH => {
                let (size, inner) = varint(body, at, SHORT_VARINT_BYTES)?;
                at = inner.saturating_add(size as usize);
            }
            3 => {
                open.push(tag >> 3);
                if open.len() > DEPTH {
                    return Err(Refusal::malformed("groups are nested too deep"));
                }
            }
            5 => at += 4,
            4 if open.pop() == Some(tag >> 3) => {}
            other => {
                return Err(Refusal::malformed(&format!("wire type {other} does not belong here")));
            }
        }
        if open.is_empty() {
            return Ok(at);
        }
        (tag, at) = varint(body, at, SHORT_VARINT_BYTES)?;
        if tag >= 1 << 32 {
            return Err(Refusal::number(tag >> 3));
        }
    }
}

/// A message that does not parse: malformed, with text that is not UTF-8, or nested too deep.
#[derive(Clone, Copy, Debug)]
pub struct Fault;

impl Fault {
    #[cold]
    pub fn of(self, message: &str) -> Refusal {
        Refusal::Malformed(format!("a {message} in it is malformed, or holds text that is not UTF-8"))
    }
}

/// The value of one field as it is on the wire.
#[derive(Clone, Copy)]
pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Group,
    Fixed32(u32),
}

/// The fields of a message, one after the other; groups are followed to their end and given without content.
pub struct Fields<'a> {
    rest: &'a [u8],
    depth: usize,
}

impl<'a> Fields<'a> {
    /// `depth` is how many messages and groups may still be inside this one.
    #[inline]
    pub fn new(data: &'a [u8], depth: usize) -> Self {
        Fields { rest: data, depth }
    }

    #[inline]
    pub fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Fault> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.tag()?;
        let number = (tag >> 3) as u32;
        if number == 0 {
            return Err(Fault);
        }
        let value = match tag & 7 {
            3 => {
                self.group(number, self.depth)?;
                Wire::Group
            }
            kind => self.scalar(kind)?,
        };
        Ok(Some((number, value)))
    }

    #[inline]
    fn tag(&mut self) -> Result<u64, Fault> {
        let tag = self.varint(SHORT_VARINT_BYTES)?;
        if tag >= 1 << 32 { Err(Fault) } else { Ok(tag) }
    }

    #[inline]
    fn scalar(&mut self, wire_type: u64) -> Result<Wire<'a>, Fault> {
        Ok(match wire_type {
            0 => Wire::Varint(self.varint(LONGEST)?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.fixed()?)),
            LENGTH => {
                let size = self.varint(SHORT_VARINT_BYTES)? as usize;
                let (data, rest) = self.rest.split_at_checked(size).ok_or(Fault)?;
                self.rest = rest;
                Wire::Bytes(data)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.fixed()?)),
            _ => return Err(Fault),
        })
    }

    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (data, rest) = self.rest.split_first_chunk().ok_or(Fault)?;
        self.rest = rest;
        Ok(*data)
    }

    #[inline]
    fn varint(&mut self, longest: usize) -> Result<u64, Fault> {
        if let Some((&byte, rest)) = self.rest.split_first()
            && byte < 0x80
        {
            self.rest = rest;
            return Ok(u64::from(byte));
        }
        self.long_varint(longest)
    }

    fn long_varint(&mut self, longest: usize) -> Result<u64, Fault> {
        let mut value = 0u64;
        for (n, &byte) in self.rest.iter().take(longest).enumerate() {
            value |= u64::from(byte & 0x7F) << (7 * n);
            if byte < 0x80 {
                self.rest = self.rest.get(n + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(Fault)
    }

    #[cold]
    fn group(&mut self, number: u32, depth: usize) -> Result<(), Fault> {
        let inner = depth.checked_sub(1).ok_or(Fault)?;
        loop {
            let tag = self.tag()?;
            match tag & 7 {
                3 => self.group((tag >> 3) as u32, inner)?,
                4 if (tag >> 3) as u32 == number => return Ok(()),
                kind => {
                    self.scalar(kind)?;
                }
            }
        }
    }
}

/// The depth left inside a message that is inside one with `depth` left.
#[inline]
pub fn inside(depth: usize) -> Result<usize, Fault> {
    depth.checked_sub(1).ok_or(Fault)
}

/// UTF-8 that was checked. No `str`: most texts are short and ASCII, which is told sooner than decoded.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    #[inline]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Where characters count; it is checked once more.
    pub fn as_str(self) -> &'a str {
        std::str::from_utf8(self.0).unwrap_or_default()
    }
}

#[inline]
pub fn text(data: &[u8]) -> Result<Text<'_>, Fault> {
    if data.is_ascii() || std::str::from_utf8(data).is_ok() { Ok(Text(data)) } else { Err(Fault) }
}

/// Numbers of eight bytes, packed.
pub fn packed_fixed64(data: &[u8], mut take: impl FnMut(u64)) -> Result<(), Fault> {
    let (numbers, rest) = data.as_chunks();
    for number in numbers {
        take(u64::from_le_bytes(*number));
    }
    if rest.is_empty() { Ok(()) } else { Err(Fault) }
}

/// Varints, packed.
pub fn packed_varints(data: &[u8], mut take: impl FnMut(u64)) -> Result<(), Fault> {
    let mut fields = Fields::new(data, 0);
    while !fields.rest.is_empty() {
        take(fields.varint(LONGEST)?);
    }
    Ok(())
}

/// A sint32.
pub fn zigzag32(n: u64) -> i32 {
    let n = n as u32;
    (n >> 1) as i32 ^ -((n & 1) as i32)
}
