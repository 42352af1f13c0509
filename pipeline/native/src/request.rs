//! What the three signals share: the walk to a request's records, identity, grouping by partition.

use std::collections::HashMap;

use crate::avro;
use crate::blake2b::{State, digests};
use crate::values::{Attributes, Limits};
use crate::wire::{
    Child, Counted, DEPTH, Fault, Fields, Level, MAX_VALUE_BYTES, Part, Text, Wire, inside, level, text,
};

const EVENT_ID_BYTES: usize = 16; // of the digest, all of it
const FRAMING_BYTES: usize = 64; // of a container file behind its head, and a twin's longer ordinal
const COUNTS_BYTES: usize = 20; // between head and block, at most: how many records, and how many bytes
const RESERVED_BYTES: usize = 24; // for a record, beside what it shares and what was sent
const RESERVED_PERCENT: usize = 110; // since no lane gets just its part
const FIRST: u8 = 0; // the ordinal of a record that has no equal before it
const SANE_FROM_NS: i64 = 946_684_800 * 1_000_000_000; // 2000-01-01
const SANE_AHEAD_NS: i64 = 86_400 * 1_000_000_000; // of the receipt

/// Where a request came from: what the gateway knows and the client cannot say.
#[derive(pyo3::FromPyObject)]
pub struct Origin {
    pub tenant: String,
    pub region: String,
    pub received_time: i64,
}

/// What is demanded of a request and its records; see `pipeline/otlp/rules.py`.
#[derive(pyo3::FromPyObject)]
pub struct Rules {
    pub max_records: usize,
    pub max_encoded_bytes: i64,
    pub max_attributes: usize,
    pub max_key_bytes: usize,
    pub max_text_bytes: usize,
    pub max_depth: usize,
    pub shed_below_severity: i32,
    pub span_threshold: u64,
    pub resource_attributes: Vec<(String, String)>,
}

/// Why a whole request is refused.
pub enum Refusal {
    Malformed(String),
    TooMany(Counted),
}

impl Refusal {
    #[cold]
    pub fn malformed(why: &str) -> Self {
        Refusal::Malformed(why.to_owned())
    }

    #[cold]
    pub fn cut_short() -> Self {
        Refusal::malformed("a field is cut short")
    }

    #[cold]
    pub fn number(number: u64) -> Self {
        Refusal::Malformed(format!("no field can have number {number}"))
    }
}

/// Why records are refused, in the order of `CODES`.
#[derive(Clone, Copy)]
pub enum Reason {
    RecordTooLarge,
    TooManyRecords,
    TooManyBytes,
    InvalidTraceId,
    InvalidSpanId,
    UnknownTemporality,
    CountTooLarge,
}

pub const CODES: [&str; 7] = [
    "record_too_large",
    "too_many_records",
    "too_many_bytes",
    "invalid_trace_id",
    "invalid_span_id",
    "unknown_temporality",
    "count_too_large",
];
pub const SHED: [&str; 4] = ["TRACE", "DEBUG", "INFO", "SPAN"];
pub const SPAN: usize = 3; // in SHED

/// One container file without its frame, for the beginning of which there is a gap before the block.
pub struct Group {
    pub partition: u32,
    pub min_time: i64,
    pub max_time: i64,
    pub records: usize,
    pub block: Vec<u8>,
    pub gap: usize,
}

/// All of one request; see `pipeline/otlp/encoding.py`.
pub struct Encoded {
    pub groups: Vec<Group>,
    pub refused: [u64; CODES.len()],
    pub shed: [u64; SHED.len()],
    pub cut: u64,
    pub untimed: u64,
}

/// What all records of one resource and scope share: their first fields, hashed as far as that goes; partition, and
/// labels of their series by key.
#[derive(Clone)]
pub struct Shared {
    pub fields: Vec<u8>,
    pub hashed: State,
    pub partition: u32,
    pub labels: Labels,
}

/// Avro of key and text, sorted by key.
pub type Labels = Vec<(Vec<u8>, Vec<u8>)>;

fn put(labels: &mut Labels, key: &[u8], text: &[u8]) {
    let mut pair = Vec::with_capacity(key.len() + text.len() + 4);
    avro::blob(&mut pair, key);
    avro::blob(&mut pair, text);
    match labels.binary_search_by(|(other, _)| other.as_slice().cmp(key)) {
        Ok(at) => {
            if let Some(label) = labels.get_mut(at) {
                label.1 = pair;
            }
        }
        Err(at) => labels.insert(at, (key.to_vec(), pair)),
    }
}

/// One request on its way: walks to its records, takes them encoded, and counts what was not taken.
pub struct Request<'a> {
    pub body: &'a [u8],
    pub origin: &'a Origin,
    pub rules: &'a Rules,
    pub limits: Limits,
    pub refused: [u64; CODES.len()],
    pub shed: [u64; SHED.len()],
    left: [usize; Counted::ALL],
    left_bytes: i64,
    shape: Shape,
    shared_bytes: usize, // at the beginning of each record of now,
    expected: usize,     // and how many bytes there will be of these in a lane
    unhashed: Vec<u8>,
    begun: Vec<State>, // what records begin with, hashed; those of now with the last
    lanes: Vec<Lane>,  // by partition
    order: Vec<u32>,   // of partitions, by their first records
}

impl<'a> Request<'a> {
    pub fn new(body: &'a [u8], head: &[u8], origin: &'a Origin, partitions: u32, rules: &'a Rules) -> Self {
        let mut unhashed = Vec::new();
        avro::blob(&mut unhashed, origin.region.as_bytes());
        avro::long(&mut unhashed, origin.received_time);
        Request {
            body,
            origin,
            rules,
            limits: Limits::new(rules),
            refused: Default::default(),
            shed: Default::default(),
            left: [rules.max_records; Counted::ALL],
            left_bytes: rules.max_encoded_bytes,
            shape: Shape {
                gap: head.len() + COUNTS_BYTES,
                largest: MAX_VALUE_BYTES.saturating_sub(head.len() + FRAMING_BYTES),
            },
            shared_bytes: 0,
            expected: 0,
            unhashed,
            begun: Vec::new(),
            lanes: vec![Lane::default(); partitions as usize],
            order: Vec::new(),
        }
    }

    // The way in: from the body to one record at a time.

    /// Walk one level; of records over `max_records` the first are listed and the others refused.
    pub fn level(&mut self, part: &Part, span: (usize, usize)) -> Result<Level, Refusal> {
        let Some(left) = self.left.get_mut(part.counted as usize) else {
            return Err(Refusal::TooMany(part.counted));
        };
        let found = level(part, self.body, span, *left)?;
        *left -= found.children.len();
        if found.more > 0 {
            if !matches!(part.counted, Counted::Records) {
                return Err(Refusal::TooMany(part.counted));
            }
            self.refuse(found.more, Reason::TooManyRecords);
        }
        Ok(found)
    }

    /// Visit every scope with what its records share: None where that is too large to be read.
    pub fn scopes(
        &mut self,
        signal: &Messages,
        mut visit: impl FnMut(&mut Self, Option<&Shared>, &Level) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let whole = self.level(&signal.request, (0, self.body.len()))?;
        for child in whole.children {
            let resource = self.level(&signal.resource, (child.start, child.end))?;
            let head = match &resource.shell {
                Some(shell) => Some(self.resource(shell, signal.resource_name)?),
                None => None,
            };
            for child in resource.children {
                let scope = self.level(&signal.scope, (child.start, child.end))?;
                let shared = match (&head, &scope.shell) {
                    (Some(head), Some(shell)) => Some(self.scope(head, shell, signal.scope_name)?),
                    _ => None,
                };
                if let Some(shared) = &shared {
                    self.begin(&shared.fields, shared.hashed);
                }
                visit(self, shared.as_ref(), &scope)?;
            }
        }
        Ok(())
    }

    /// Visit one record's bytes after the other; refuse those that are too large, or come when the request is full.
    ///
    /// They are spread over so many `lanes`.
    pub fn records(
        &mut self,
        found: &Level,
        lanes: usize,
        mut visit: impl FnMut(&mut Self, &'a [u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let each = EVENT_ID_BYTES + self.unhashed.len() + self.shared_bytes + RESERVED_BYTES;
        let sent: usize = found.children.iter().map(|child| child.end - child.start).sum();
        let all = sent.saturating_add(found.children.len().saturating_mul(each));
        self.expected = (all / lanes.max(1)).saturating_mul(RESERVED_PERCENT) / 100;
        for (n, &Child { start, end, .. }) in found.children.iter().enumerate() {
            if self.left_bytes < 0 {
                self.refuse(found.children.len() - n, Reason::TooManyBytes);
                break;
            }
            if end - start > MAX_VALUE_BYTES {
                self.refuse(1, Reason::RecordTooLarge);
                continue;
            }
            visit(self, self.body.get(start..end).unwrap_or_default())?;
        }
        Ok(())
    }

    #[inline]
    pub fn refuse(&mut self, records: usize, reason: Reason) {
        if let Some(count) = self.refused.get_mut(reason as usize) {
            *count += records as u64;
        }
    }

    fn resource(&mut self, shell: &[u8], name: &str) -> Result<Shared, Refusal> {
        let mut raws = Vec::new();
        let schema_url = read_resource(shell, &mut raws).map_err(|fault| fault.of(name))?;
        let mut attributes = Attributes::default();
        attributes.read(&raws, &mut self.limits)?;
        let mut texts: HashMap<&[u8], &[u8]> = attributes.iter().collect();
        for (key, text) in &self.rules.resource_attributes {
            texts.insert(key.as_bytes(), text.as_bytes());
        }
        let named = |key: &str| texts.get(key.as_bytes()).copied().unwrap_or_default();
        let (service, host) = (named("service.name"), named("host.name"));
        let mut place = service.to_vec();
        place.push(0);
        place.extend_from_slice(host);
        let mut labels = Labels::new();
        let mut sorted: Vec<_> = texts.iter().collect();
        sorted.sort();
        for (key, text) in sorted {
            put(&mut labels, key, text);
        }
        let mut fields = Vec::new();
        avro::blob(&mut fields, self.origin.tenant.as_bytes());
        avro::blob(&mut fields, service);
        avro::blob(&mut fields, host);
        if !labels.is_empty() {
            avro::size(&mut fields, labels.len());
            for (_, pair) in &labels {
                fields.extend_from_slice(pair);
            }
        }
        fields.push(avro::NOTHING);
        avro::blob(&mut fields, schema_url.as_bytes());
        let mut hashed = State::new(EVENT_ID_BYTES);
        hashed.absorb(&fields);
        Ok(Shared { fields, hashed, partition: self.partition(&place), labels })
    }

    fn scope(&mut self, resource: &Shared, shell: &[u8], name: &str) -> Result<Shared, Refusal> {
        let mut raws = Vec::new();
        let found = read_scope(shell, &mut raws).map_err(|fault| fault.of(name))?;
        let mut shared = resource.clone();
        let fields = &mut shared.fields;
        avro::blob(fields, found.name.as_bytes());
        avro::blob(fields, found.version.as_bytes());
        let mut attributes = Attributes::default();
        attributes.read(&raws, &mut self.limits)?;
        attributes.write(fields);
        avro::blob(fields, found.schema_url.as_bytes());
        shared.hashed.absorb(fields);
        for (key, text) in attributes.iter() {
            put(&mut shared.labels, &[b"otel.scope.", key].concat(), text);
        }
        for (key, text) in [("otel.scope.name", found.name), ("otel.scope.version", found.version)] {
            if !text.as_bytes().is_empty() {
                put(&mut shared.labels, key.as_bytes(), text.as_bytes());
            }
        }
        Ok(shared)
    }

    // The way out: records into container files.

    pub fn partitions(&self) -> usize {
        self.lanes.len()
    }

    /// CRC-32 of the key, modulo the topic's partitions.
    #[inline]
    pub fn partition(&self, key: &[u8]) -> u32 {
        crc32fast::hash(key) % self.lanes.len().max(1) as u32
    }

    /// The records that follow begin with `fields`, which were hashed.
    pub fn begin(&mut self, fields: &[u8], hashed: State) {
        self.shared_bytes = fields.len();
        self.begun.push(hashed);
    }

    /// Take one record of `partition`: `write` appends what follows `fields`, without the ordinal. `time` is as sent, or
    /// 0 (ns).
    #[inline]
    pub fn add(
        &mut self,
        fields: &[u8],
        (partition, time): (u32, i64),
        write: impl FnOnce(&mut Limits, &mut Vec<u8>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Some(lane) = self.lanes.get_mut(partition as usize) else { return Ok(()) };
        let bytes = lane.open.ready(self.shape, self.expected);
        let start = bytes.len();
        bytes.extend_from_slice(&[0; EVENT_ID_BYTES]);
        bytes.extend_from_slice(&self.unhashed);
        bytes.extend_from_slice(fields);
        write(&mut self.limits, bytes)?;
        bytes.push(FIRST);
        let size = bytes.len() - start;
        let reason = if size > self.shape.largest {
            Some(Reason::RecordTooLarge)
        } else {
            self.left_bytes = self.left_bytes.saturating_sub(size as i64);
            (self.left_bytes < 0).then_some(Reason::TooManyBytes)
        };
        if let Some(reason) = reason {
            bytes.truncate(start);
            self.refuse(1, reason);
            return Ok(());
        }
        if lane.is_empty() {
            self.order.push(partition);
        }
        lane.keep(Place { start, time, begun: self.begun.len().saturating_sub(1) }, self.shape);
        Ok(())
    }

    /// What came of the request, once all its records were added.
    pub fn finish(mut self) -> Encoded {
        let mut groups = Vec::new();
        let mut untimed = 0;
        for &partition in &self.order {
            let Some(lane) = self.lanes.get_mut(partition as usize) else { continue };
            for block in std::mem::take(lane).identified(&self.begun, self.unhashed.len(), self.shape) {
                groups.push(block.group(partition, self.shape.gap, (self.origin.received_time, &mut untimed)));
            }
        }
        Encoded { groups, refused: self.refused, shed: self.shed, cut: self.limits.cut, untimed }
    }
}

/// Of a block: room before its records for what frames them, and how many bytes of records fit a message.
#[derive(Clone, Copy)]
struct Shape {
    gap: usize,
    largest: usize,
}

/// The records of one partition, in blocks that each fit a message.
#[derive(Clone, Default)]
struct Lane {
    full: Vec<Block>,
    open: Block,
}

/// Encoded records one after the other, behind a gap.
#[derive(Clone, Default)]
struct Block {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where a record starts, its time, and which state it begins with.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    time: i64,
    begun: usize,
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.full.is_empty() && self.open.places.is_empty()
    }

    /// Keep the record that was written to the open block's end; one that does not fit begins the next.
    #[inline]
    fn keep(&mut self, place: Place, shape: Shape) {
        if self.open.bytes.len() - shape.gap > shape.largest {
            let mut next = Block::default();
            let bytes = next.ready(shape, 0);
            bytes.extend(self.open.bytes.drain(place.start..));
            next.places.push(Place { start: shape.gap, ..place });
            self.full.push(std::mem::replace(&mut self.open, next));
        } else {
            self.open.places.push(place);
        }
    }

    /// The blocks with ids; equal records get their ordinals, and so ids of their own.
    fn identified(self, begun: &[State], unhashed: usize, shape: Shape) -> Vec<Block> {
        let mut blocks = self.full;
        if !self.open.places.is_empty() {
            blocks.push(self.open);
        }
        blocks.iter_mut().for_each(|block| block.identify(begun, unhashed));
        let mut ids: Vec<u64> = blocks.iter().flat_map(Block::ids).map(|id| id as u64).collect();
        let records = ids.len();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() < records {
            blocks = with_ordinals(blocks, shape);
            blocks.iter_mut().for_each(|block| block.identify(begun, unhashed));
        }
        blocks
    }
}

/// The same records in the same order, with the ordinals of those that are equal to one before.
fn with_ordinals(blocks: Vec<Block>, shape: Shape) -> Vec<Block> {
    let mut seen: HashMap<u128, i64> = HashMap::new();
    let mut lane = Lane::default();
    for block in blocks {
        for ((record, id), &place) in block.records().zip(block.ids()).zip(&block.places) {
            let ordinal = seen.entry(id).or_default();
            let bytes = lane.open.ready(shape, 0);
            let start = bytes.len();
            bytes.extend_from_slice(record);
            if *ordinal > 0 {
                bytes.pop();
                avro::long(bytes, *ordinal);
            }
            *ordinal += 1;
            lane.keep(Place { start, ..place }, shape);
        }
    }
    lane.full.push(lane.open);
    lane.full
}

impl Block {
    /// Its bytes, with the gap, and with room for as many as are expected.
    #[inline]
    fn ready(&mut self, shape: Shape, expected: usize) -> &mut Vec<u8> {
        if self.bytes.is_empty() {
            self.bytes.reserve(shape.gap + FRAMING_BYTES + expected.min(shape.largest));
            self.bytes.resize(shape.gap, 0);
        }
        &mut self.bytes
    }

    fn records(&self) -> impl Iterator<Item = &[u8]> {
        let ends = self.places.iter().skip(1).map(|place| place.start).chain([self.bytes.len()]);
        self.places.iter().zip(ends).map(|(place, end)| self.bytes.get(place.start..end).unwrap_or_default())
    }

    fn ids(&self) -> impl Iterator<Item = u128> {
        self.records().map(|record| record.first_chunk().map_or(0, |id| u128::from_le_bytes(*id)))
    }

    /// Give every record the hash of its content.
    fn identify(&mut self, begun: &[State], unhashed: usize) {
        let contents: Vec<(&State, &[u8])> = self
            .records()
            .zip(&self.places)
            .filter_map(|(record, place)| Some((begun.get(place.begun)?, record.get(EVENT_ID_BYTES + unhashed..)?)))
            .collect();
        for (place, id) in self.places.iter().zip(digests(&contents)) {
            if let Some(to) = self.bytes.get_mut(place.start..place.start + EVENT_ID_BYTES) {
                to.copy_from_slice(&id);
            }
        }
    }

    /// The block as one message; the receipt stands for times that are none.
    fn group(self, partition: u32, gap: usize, (received, untimed): (i64, &mut u64)) -> Group {
        let latest = received.saturating_add(SANE_AHEAD_NS);
        let (mut min_time, mut max_time) = (i64::MAX, i64::MIN);
        for &Place { mut time, .. } in &self.places {
            if !(SANE_FROM_NS..=latest).contains(&time) {
                time = received;
                *untimed += 1;
            }
            min_time = min_time.min(time);
            max_time = max_time.max(time);
        }
        Group { partition, records: self.places.len(), min_time, max_time, block: self.bytes, gap }
    }
}

/// The messages around a signal's records: how they are walked, and their names.
pub struct Messages {
    pub request: Part,
    pub resource: Part,
    pub scope: Part,
    pub resource_name: &'static str,
    pub scope_name: &'static str,
}

/// Resource…: the schema URL, and the resource's attributes as sent.
fn read_resource<'s>(shell: &'s [u8], raws: &mut Vec<&'s [u8]>) -> Result<Text<'s>, Fault> {
    let mut schema_url = Text::default();
    let mut fields = Fields::new(shell, DEPTH);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Bytes(data)) => {
                let depth = inside(DEPTH)?;
                let mut fields = Fields::new(data, depth);
                while let Some(field) = fields.next()? {
                    match field {
                        (1, Wire::Bytes(raw)) => raws.push(raw),
                        (3, Wire::Bytes(data)) => check_entity(data, inside(depth)?)?,
                        _ => {}
                    }
                }
            }
            (3, Wire::Bytes(data)) => schema_url = text(data)?,
            _ => {}
        }
    }
    Ok(schema_url)
}

/// An EntityRef, of which only texts can be malformed.
fn check_entity(data: &[u8], depth: usize) -> Result<(), Fault> {
    let mut fields = Fields::new(data, depth);
    while let Some(field) = fields.next()? {
        if let (1..=4, Wire::Bytes(data)) = field {
            text(data)?;
        }
    }
    Ok(())
}

#[derive(Default)]
struct Scope<'s> {
    name: Text<'s>,
    version: Text<'s>,
    schema_url: Text<'s>,
}

/// Scope…: what it says of the scope, and the scope's attributes as sent.
fn read_scope<'s>(shell: &'s [u8], raws: &mut Vec<&'s [u8]>) -> Result<Scope<'s>, Fault> {
    let mut scope = Scope::default();
    let mut fields = Fields::new(shell, DEPTH);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Bytes(data)) => {
                let mut fields = Fields::new(data, inside(DEPTH)?);
                while let Some(field) = fields.next()? {
                    match field {
                        (1, Wire::Bytes(data)) => scope.name = text(data)?,
                        (2, Wire::Bytes(data)) => scope.version = text(data)?,
                        (3, Wire::Bytes(raw)) => raws.push(raw),
                        _ => {}
                    }
                }
            }
            (3, Wire::Bytes(data)) => scope.schema_url = text(data)?,
            _ => {}
        }
    }
    Ok(scope)
}
