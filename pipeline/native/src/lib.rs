//! The hot path of the pipeline; the Python beside it is the reference, and says what each function promises.

mod avro;
mod blake2b;
mod columns;
mod json;
mod logs;
mod metrics;
mod request;
mod rows;
mod traces;
mod values;
mod varint;
mod wire;

#[pyo3::pymodule]
mod _native {
    use pyo3::create_exception;
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;
    use pyo3::pybacked::PyBackedBytes;
    use pyo3::types::PyBytes;

    use crate::avro;
    use crate::request::{CODES, Encoded, Group, Origin, Refusal, Request, Rules, SHED};
    use crate::{columns, json, logs, metrics, rows, traces};

    create_exception!(pipeline.native, Malformed, PyValueError);
    create_exception!(pipeline.native, TooMany, PyValueError);

    const SYNC_BYTES: usize = 16; // of a container file's head, at its end

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("Malformed", module.py().get_type::<Malformed>())?;
        module.add("TooMany", module.py().get_type::<TooMany>())
    }

    type Row<'py> = (u32, usize, i64, i64, Bound<'py, PyBytes>);
    type Counts = Vec<(&'static str, u64)>;

    /// `pipeline.otlp.encode`: groups, refused, shed, cut, untimed. Raises Malformed with the reason, and TooMany with
    /// what there are too many of.
    #[pyfunction]
    fn encode<'py>(
        py: Python<'py>,
        signal: &str,
        body: &[u8],
        head: &[u8],
        origin: Origin,
        partitions: u32,
        rules: Rules,
    ) -> PyResult<(Vec<Row<'py>>, Counts, Counts, u64, u64)> {
        let encode = match signal {
            "logs" => logs::encode,
            "metrics" => metrics::encode,
            "traces" => traces::encode,
            other => return Err(PyValueError::new_err(format!("there is no signal {other}"))),
        };
        let encoded = py.detach(|| encode(Request::new(body, head, &origin, partitions, &rules))).map_err(
            |refusal| match refusal {
                Refusal::Malformed(why) => Malformed::new_err(why),
                Refusal::TooMany(counted) => TooMany::new_err(counted.name()),
            },
        )?;
        let Encoded { groups, refused, shed, cut, untimed } = encoded;
        let groups = groups.into_iter().map(|group| row(py, head, group)).collect();
        Ok((groups, counts(&CODES, &refused), counts(&SHED, &shed), cut, untimed))
    }

    /// `pipeline.otlp.json.to_protobuf`, or None where the reference has to look at the body.
    #[pyfunction]
    fn json_to_protobuf<'py>(
        py: Python<'py>,
        signal: &str,
        body: &[u8],
        max_values: usize,
    ) -> Option<Bound<'py, PyBytes>> {
        py.detach(|| json::to_protobuf(signal, body, max_values)).map(|protobuf| PyBytes::new(py, &protobuf))
    }

    type CopyRows<'py> = Vec<(usize, usize, Vec<i64>, Bound<'py, PyBytes>)>;

    /// `pipeline.timescale.writer.prepared`: height, beaten, hours and rows of each table, and the series; or None where the
    /// reference has to look at the file.
    #[pyfunction]
    fn copy_rows<'py>(py: Python<'py>, head: &[u8], file: &[u8]) -> Option<(CopyRows<'py>, Vec<i64>)> {
        let (tables, series) = py.detach(|| rows::copy_rows(head, file))?;
        let tables =
            tables.iter().map(|table| (table.height, table.beaten, table.hours.clone(), PyBytes::new(py, &table.rows)));
        Some((tables.collect(), series))
    }

    /// A group with its block framed as a container file.
    fn row<'py>(py: Python<'py>, head: &[u8], group: Group) -> Row<'py> {
        let Group { partition, min_time, max_time, records, mut block, gap } = group;
        let mut frame = head.to_vec();
        avro::size(&mut frame, records);
        avro::size(&mut frame, block.len() - gap);
        let start = gap - frame.len();
        if let Some(place) = block.get_mut(start..gap) {
            place.copy_from_slice(&frame);
        }
        block.extend_from_slice(head.last_chunk::<SYNC_BYTES>().map_or(&[], |sync| sync));
        (partition, records, min_time, max_time, PyBytes::new(py, block.get(start..).unwrap_or_default()))
    }

    /// `pipeline.clickhouse.body`: Native blocks of about `rows` records; see columns.rs for what stands in `fields`.
    /// Raises Malformed where a value is damaged.
    #[pyfunction]
    #[pyo3(name = "columns")]
    fn native_blocks<'py>(
        py: Python<'py>,
        fields: Vec<(String, String)>,
        values: Vec<PyBackedBytes>,
        skip: usize,
        rows: u64,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let values: Vec<&[u8]> = values.iter().map(|value| &**value).collect();
        let blocks = py.detach(|| columns::native(&fields, &values, skip, rows)).map_err(Malformed::new_err)?;
        Ok(blocks.iter().map(|block| PyBytes::new(py, block)).collect())
    }

    /// `pipeline.record.layout`: for each record of a container file, as u32, where it begins and where each of its fields
    /// ends; `fields` as for `columns`. Raises Malformed where the reference has to look at the value.
    #[pyfunction]
    fn places<'py>(
        py: Python<'py>,
        fields: Vec<(String, String)>,
        value: &[u8],
        skip: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let places = py.detach(|| columns::places(&fields, value, skip)).map_err(Malformed::new_err)?;
        let bytes: Vec<u8> = places.iter().flat_map(|place| place.to_ne_bytes()).collect();
        Ok(PyBytes::new(py, &bytes))
    }

    fn counts(names: &[&'static str], counts: &[u64]) -> Counts {
        names.iter().copied().zip(counts.iter().copied()).filter(|(_, count)| *count > 0).collect()
    }
}
