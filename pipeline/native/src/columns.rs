//! Avro container files to ClickHouse's Native format: the same records, column by column.
//! Sources: the Avro 1.12 specification, "Binary Encoding"; ClickHouse's documentation of the format Native.

use crate::avro::Reader;
use crate::varint;

const SYNC: usize = 16;
const DAMAGED: &str = "The value is cut short or damaged.";

/// The values of one field of all records, in Native's form.
enum Column {
    Long(Vec<u8>),
    Int(Vec<u8>),
    /// Boolean, float, double, fixed: as they stand in Avro.
    Plain {
        size: usize,
        values: Vec<u8>,
    },
    /// Strings and bytes.
    Text(Vec<u8>),
    Enum {
        symbols: Vec<String>,
        values: Vec<u8>,
    },
    Nullable {
        null: i64,
        nulls: Vec<u8>,
        item: Box<Column>,
    },
    Array {
        ends: Vec<u8>,
        items: u64,
        item: Box<Column>,
    },
    Record(Vec<Column>),
}

/// `values`, container files of records with these fields, as Native blocks that each end with the value that
/// brings the `rows`th record.
///
/// A field is its name and its type: `l` long, `i` int, `d` double, `r` float, `b` boolean, `s` string or bytes, `f16;`
/// fixed, `e{a,b}` enum, `?0` or `?1` before the other type of a union with null there, `[` before the items of an
/// array, `{` before the values of a map, `(name:type,…)` a record. Each value starts with `skip` bytes of head.
pub fn native(fields: &[(String, String)], values: &[&[u8]], skip: usize, rows: u64) -> Result<Vec<Vec<u8>>, String> {
    let (mut columns, types): (Vec<_>, Vec<_>) = parse_all(fields)?.into_iter().unzip();
    let types: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).zip(types).collect();
    let mut blocks = Vec::new();
    let mut count = 0;
    for value in values {
        let more = read_value(value.get(skip..).ok_or(DAMAGED)?, &mut columns).ok_or(DAMAGED)?;
        count += more;
        if count >= rows {
            blocks.push(take(&types, &mut columns, count));
            count = 0;
        }
    }
    if count > 0 {
        blocks.push(take(&types, &mut columns, count));
    }
    Ok(blocks)
}

/// For each record of a container file where it begins, and where each of its fields ends.
pub fn places(fields: &[(String, String)], value: &[u8], skip: usize) -> Result<Vec<u32>, String> {
    let columns: Vec<_> = parse_all(fields)?.into_iter().map(|(column, _)| column).collect();
    Ok(find_places(&columns, value, skip).ok_or(DAMAGED)?)
}

fn find_places(columns: &[Column], value: &[u8], skip: usize) -> Option<Vec<u32>> {
    u32::try_from(value.len()).ok()?;
    let (head, rest) = value.split_at_checked(skip)?;
    let mut reader = Reader { rest };
    let mut places = Vec::new();
    while !reader.rest.is_empty() {
        let (count, mut block, sync) = read_block(&mut reader)?;
        let end = value.len() - reader.rest.len() - SYNC;
        if !head.ends_with(sync) {
            return None;
        }
        for _ in 0..count {
            if block.rest.is_empty() {
                return None;
            }
            places.push((end - block.rest.len()) as u32);
            for column in columns {
                column.pass(&mut block)?;
                places.push((end - block.rest.len()) as u32);
            }
        }
        if !block.rest.is_empty() {
            return None;
        }
    }
    Some(places)
}

/// A column of each field, and its type as Native says it.
fn parse_all(fields: &[(String, String)]) -> Result<Vec<(Column, String)>, String> {
    let one = |(name, code): &(String, String)| {
        let mut rest = code.as_str();
        parse(&mut rest).filter(|_| rest.is_empty()).ok_or(format!("{name} has no type {code}."))
    };
    fields.iter().map(one).collect()
}

fn parse(code: &mut &str) -> Option<(Column, String)> {
    let mut letters = code.chars();
    let letter = letters.next()?;
    *code = letters.as_str();
    let plain = |size| Column::Plain { size, values: Vec::new() };
    Some(match letter {
        'l' => (Column::Long(Vec::new()), "Int64".into()),
        'i' => (Column::Int(Vec::new()), "Int32".into()),
        'd' => (plain(8), "Float64".into()),
        'r' => (plain(4), "Float32".into()),
        'b' => (plain(1), "Bool".into()),
        's' => (Column::Text(Vec::new()), "String".into()),
        'f' => {
            let (size, rest) = code.split_once(';')?;
            *code = rest;
            (plain(size.parse().ok()?), format!("FixedString({size})"))
        }
        'e' => {
            let (symbols, rest) = code.strip_prefix('{')?.split_once('}')?;
            *code = rest;
            let symbols = symbols.split(',').map(String::from).collect();
            (Column::Enum { symbols, values: Vec::new() }, "String".into())
        }
        '?' => {
            let null = if code.starts_with('0') { 0 } else { 1 };
            *code = code.get(1..)?;
            let (item, kind) = parse(code)?;
            (Column::Nullable { null, nulls: Vec::new(), item: item.into() }, format!("Nullable({kind})"))
        }
        '[' => {
            let (item, kind) = parse(code)?;
            (array(item), format!("Array({kind})"))
        }
        '{' => {
            let (item, kind) = parse(code)?;
            let pair = Column::Record(vec![Column::Text(Vec::new()), item]);
            (array(pair), format!("Map(String, {kind})"))
        }
        '(' => {
            let (mut parts, mut kinds) = (Vec::new(), Vec::new());
            while !code.starts_with(')') {
                let (name, rest) = code.split_once(':')?;
                *code = rest;
                let (part, kind) = parse(code)?;
                parts.push(part);
                kinds.push(format!("{name} {kind}"));
                *code = code.strip_prefix(',').unwrap_or(code);
            }
            *code = code.strip_prefix(')')?;
            (Column::Record(parts), format!("Tuple({})", kinds.join(", ")))
        }
        _ => return None,
    })
}

fn array(item: Column) -> Column {
    Column::Array { ends: Vec::new(), items: 0, item: item.into() }
}

/// Blocks of records; how many they were.
fn read_value(value: &[u8], columns: &mut [Column]) -> Option<u64> {
    let mut reader = Reader { rest: value };
    let mut records = 0;
    while !reader.rest.is_empty() {
        let (count, mut block, _) = read_block(&mut reader)?;
        for _ in 0..count {
            if block.rest.is_empty() {
                return None;
            }
            for column in columns.iter_mut() {
                column.read(&mut block)?;
            }
        }
        if !block.rest.is_empty() {
            return None;
        }
        records += count;
    }
    Some(records)
}

/// How many records a block holds, their bytes, and its sync marker.
fn read_block<'a>(reader: &mut Reader<'a>) -> Option<(u64, Reader<'a>, &'a [u8])> {
    let count = reader.size()?;
    let block = Reader { rest: reader.blob()? };
    Some((count as u64, block, reader.take(SYNC)?))
}

impl Column {
    /// As `read`, and leave the value where it is.
    fn pass(&self, reader: &mut Reader<'_>) -> Option<()> {
        match self {
            Column::Long(_) | Column::Int(_) => reader.long().map(drop),
            Column::Plain { size, .. } => reader.take(*size).map(drop),
            Column::Text(_) => reader.blob().map(drop),
            Column::Enum { symbols, .. } => {
                let which = reader.size()?;
                symbols.get(which).map(drop)
            }
            Column::Nullable { null, item, .. } => match reader.long()? {
                which if which == *null => Some(()),
                0 | 1 => item.pass(reader),
                _ => None,
            },
            Column::Array { item, .. } => loop {
                let count = reader.size()?; // with a size: none that we write
                if count == 0 {
                    return Some(());
                }
                for _ in 0..count {
                    if reader.rest.is_empty() {
                        return None;
                    }
                    item.pass(reader)?;
                }
            },
            Column::Record(parts) => parts.iter().try_for_each(|part| part.pass(reader)),
        }
    }

    fn read(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        match self {
            Column::Long(values) => values.extend_from_slice(&reader.long()?.to_le_bytes()),
            Column::Int(values) => {
                let value = reader.int()?;
                values.extend_from_slice(&value.to_le_bytes());
            }
            Column::Plain { size, values } => values.extend_from_slice(reader.take(*size)?),
            Column::Text(values) => varint::blob(values, reader.blob()?),
            Column::Enum { symbols, values } => {
                let which = reader.size()?;
                varint::blob(values, symbols.get(which)?.as_bytes());
            }
            Column::Nullable { null, nulls, item } => match reader.long()? {
                which if which == *null => {
                    nulls.push(1);
                    item.default();
                }
                0 | 1 => {
                    nulls.push(0);
                    item.read(reader)?;
                }
                _ => return None,
            },
            Column::Array { ends, items, item } => {
                loop {
                    let mut count = reader.long()?;
                    if count == 0 {
                        break;
                    }
                    if count < 0 {
                        reader.long()?; // the size in bytes, for those who skip
                        count = count.checked_neg()?;
                    }
                    for _ in 0..count {
                        if reader.rest.is_empty() {
                            return None;
                        }
                        item.read(reader)?;
                    }
                    *items += count.unsigned_abs();
                }
                ends.extend_from_slice(&items.to_le_bytes());
            }
            Column::Record(parts) => {
                for part in parts {
                    part.read(reader)?;
                }
            }
        }
        Some(())
    }

    /// What stands in Native where a value is null.
    fn default(&mut self) {
        match self {
            Column::Long(values) => values.extend_from_slice(&[0; 8]),
            Column::Int(values) => values.extend_from_slice(&[0; 4]),
            Column::Plain { size, values } => values.resize(values.len() + *size, 0),
            Column::Text(values) | Column::Enum { values, .. } => values.push(0),
            Column::Nullable { nulls, item, .. } => {
                nulls.push(1);
                item.default();
            }
            Column::Array { ends, items, .. } => ends.extend_from_slice(&items.to_le_bytes()),
            Column::Record(parts) => parts.iter_mut().for_each(Column::default),
        }
    }

    /// Move all values to the end of `block`.
    fn drain(&mut self, block: &mut Vec<u8>) {
        match self {
            Column::Long(values)
            | Column::Int(values)
            | Column::Plain { values, .. }
            | Column::Text(values)
            | Column::Enum { values, .. } => block.append(values),
            Column::Nullable { nulls, item, .. } => {
                block.append(nulls);
                item.drain(block);
            }
            Column::Array { ends, items, item } => {
                block.append(ends);
                *items = 0;
                item.drain(block);
            }
            Column::Record(parts) => parts.iter_mut().for_each(|part| part.drain(block)),
        }
    }

    fn len(&self) -> usize {
        match self {
            Column::Long(values)
            | Column::Int(values)
            | Column::Plain { values, .. }
            | Column::Text(values)
            | Column::Enum { values, .. } => values.len(),
            Column::Nullable { nulls, item, .. } => nulls.len() + item.len(),
            Column::Array { ends, item, .. } => ends.len() + item.len(),
            Column::Record(parts) => parts.iter().map(Column::len).sum(),
        }
    }
}

fn take(types: &[(&str, String)], columns: &mut [Column], rows: u64) -> Vec<u8> {
    let names: usize = types.iter().map(|(name, kind)| name.len() + kind.len() + 4).sum();
    let mut block = Vec::with_capacity(20 + names + columns.iter().map(Column::len).sum::<usize>());
    varint::put(&mut block, columns.len() as u64);
    varint::put(&mut block, rows);
    for ((name, kind), column) in types.iter().zip(columns) {
        varint::blob(&mut block, name.as_bytes());
        varint::blob(&mut block, kind.as_bytes());
        column.drain(&mut block);
    }
    block
}
