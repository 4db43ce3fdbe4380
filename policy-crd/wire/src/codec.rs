//! Protocol buffers over gRPC, with what a message may cost looked at before it is decoded.
//!
//! An element of a list that is empty takes two bytes of a message and hundreds of memory once it is decoded: a node
//! that lies could make gigabytes of a message of some megabytes. So the elements are counted first, by the bytes alone,
//! and a message with too many is refused. Called by the generated client and server.

use crate::{limits, pb};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

/// A message with a bound on its elements, if it needs one.
pub trait Bound {
    /// Elements at most; nothing: whoever sends it is trusted with its size.
    const ENTRIES: Option<usize>;
}

impl Bound for pb::FromNode {
    const ENTRIES: Option<usize> = Some(limits::FROM_NODE_ENTRIES);
}

impl Bound for pb::ToNode {
    const ENTRIES: Option<usize> = None;
}

/// See the module.
#[derive(Debug)]
pub struct Bounded<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Bounded<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Bounded<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Bound + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// Counts, then decodes.
#[derive(Debug)]
pub struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Message + Default + Bound> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        use prost::bytes::Buf as _;
        let message = buffer.copy_to_bytes(buffer.remaining());
        if let Some(most) = U::ENTRIES
            && entries(&message, most).is_none()
        {
            return Err(Status::resource_exhausted(format!(
                "a message of more than {most} endpoints, records or numbers is refused whole: send fewer in one"
            )));
        }
        let broken = |error: prost::DecodeError| Status::internal(error.to_string());
        U::decode(message).map(Some).map_err(broken)
    }
}

/// Whose lists are looked at.
#[derive(Clone, Copy)]
enum Part {
    FromNode,
    Ack,
    Report,
    Kernel,
}

impl Part {
    /// What a field of it is, where that has lists. The elements of lists have none.
    const fn field(self, number: u32) -> Option<Self> {
        match (self, number) {
            (Self::FromNode, 2) => Some(Self::Ack),
            (Self::FromNode, 3) => Some(Self::Report),
            (Self::Report, 3) => Some(Self::Kernel),
            _ => None,
        }
    }
}

/// The fields of a [`pb::FromNode`] and of its parts that have lists, every element being one, if there are no more
/// than so many. What is no message is counted up to where it ends to be one.
#[must_use]
pub fn entries(message: &[u8], most: usize) -> Option<usize> {
    count(message, Part::FromNode, most)
}

fn count(mut message: &[u8], part: Part, most: usize) -> Option<usize> {
    let mut found = 0;
    while !message.is_empty() {
        let Ok((number, kind)) = decode_key(&mut message) else { break };
        found += 1;
        if found > most {
            return None;
        }
        if let (WireType::LengthDelimited, Some(part)) = (kind, part.field(number)) {
            let length = decode_varint(&mut message).ok().and_then(|length| usize::try_from(length).ok());
            let Some((inside, rest)) = length.and_then(|length| message.split_at_checked(length)) else {
                break;
            };
            found += count(inside, part, most - found)?;
            message = rest;
        } else if skip_field(kind, number, &mut message, DecodeContext::default()).is_err() {
            break;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(report: pb::Report) -> Vec<u8> {
        pb::FromNode { message: Some(pb::from_node::Message::Report(report)) }.encode_to_vec()
    }

    #[test]
    fn what_is_empty_is_counted_too() {
        let records = vec![pb::FlowRecord::default(); 1000];
        let message = report(pb::Report { records, ..pb::Report::default() });
        assert!(message.len() < 2100, "{}", message.len());
        assert_eq!(entries(&message, 1001), Some(1001));
        assert_eq!(entries(&message, 1000), None);
    }

    /// A field that comes twice is one longer list to the decoder.
    #[test]
    fn every_list_is_counted_however_often_its_message_comes() {
        let kernel = pb::Kernel {
            packets: vec![pb::Packets::default(); 7],
            maps: vec![pb::MapFill { used: 1, ..pb::MapFill::default() }; 10],
            drift: vec![pb::Drift::default(); 3],
            ..pb::Kernel::default()
        };
        let mut message = crate::kernel(kernel).encode_to_vec();
        assert_eq!(entries(&message, 100), Some(1 + 1 + 20));
        message.extend(message.clone());
        assert_eq!(entries(&message, 100), Some(2 * 22));
        let ack = pb::Ack {
            attached: vec![String::new(); 5],
            missing: vec![pb::MissingEndpoint::default(); 6],
            drift: vec![pb::Drift::default(); 7],
            ..pb::Ack::default()
        };
        assert_eq!(entries(&crate::ack(ack).encode_to_vec(), 100), Some(1 + 18));
    }

    /// The largest messages that nodes send stay far below the bound.
    #[test]
    fn what_nodes_send_is_taken() {
        let missing = pb::MissingEndpoint { endpoint: "shop/cart".into(), reason: "no device: look".into() };
        let ack = pb::Ack {
            attached: vec!["shop/cart".into(); limits::ENDPOINTS],
            missing: vec![missing; limits::ENDPOINTS],
            drift: vec![pb::Drift::default(); limits::DRIFTS],
            ..pb::Ack::default()
        };
        assert!(entries(&crate::ack(ack).encode_to_vec(), limits::FROM_NODE_ENTRIES).is_some());
    }

    /// Groups, which are fields within each other without a length, are skipped within the decoder's own bound.
    #[test]
    fn noise_ends() {
        for length in 0..64_u8 {
            let noise: Vec<u8> = (0..length).map(|at| at.wrapping_mul(151)).collect();
            let _ = entries(&noise, 1000);
        }
        assert!(entries(&[0x0b; 100_000], usize::MAX).is_some());
    }
}
