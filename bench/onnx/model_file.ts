// An ONNX model on disk: the graph in one protobuf file, constants in a file of raw data beside it
// ("external data"), as exporters write models of any size.
import { closeSync, openSync, renameSync, writeFileSync, writeSync } from 'node:fs';
import { basename } from 'node:path';
import { loadProtobuf } from '../peers';

// The part of onnx.proto that is used; names and numbers are those of the ONNX specification.
const schema = `
syntax = "proto3";
package onnx;
message StringStringEntryProto { string key = 1; string value = 2; }
message TensorProto {
  repeated int64 dims = 1;
  int32 data_type = 2;
  string name = 8;
  bytes raw_data = 9;
  repeated StringStringEntryProto external_data = 13;
  int32 data_location = 14;
}
message TensorShapeProto {
  message Dimension { oneof value { int64 dim_value = 1; string dim_param = 2; } }
  repeated Dimension dim = 1;
}
message TypeProto {
  message Tensor { int32 elem_type = 1; TensorShapeProto shape = 2; }
  Tensor tensor_type = 1;
}
message ValueInfoProto { string name = 1; TypeProto type = 2; }
message AttributeProto {
  string name = 1;
  float f = 2;
  int64 i = 3;
  bytes s = 4;
  repeated int64 ints = 8;
  int32 type = 20;
}
message NodeProto {
  repeated string input = 1;
  repeated string output = 2;
  string name = 3;
  string op_type = 4;
  repeated AttributeProto attribute = 5;
  string domain = 7;
}
message GraphProto {
  repeated NodeProto node = 1;
  string name = 2;
  repeated TensorProto initializer = 5;
  repeated ValueInfoProto input = 11;
  repeated ValueInfoProto output = 12;
}
message OperatorSetIdProto { string domain = 1; int64 version = 2; }
message ModelProto {
  int64 ir_version = 1;
  string producer_name = 2;
  GraphProto graph = 7;
  repeated OperatorSetIdProto opset_import = 8;
}
`;

const irVersion = 9;
const opset = 20;
const external = 1;
/** Constants of fewer bytes stay in the graph, where shape inference can read them. */
const leastExternalBytes = 1024;
const alignment = 4096;

/** Numbers of TensorProto.DataType. */
const dataTypes = { float32: 1, uint8: 2, int8: 3, int64: 7 } as const;
/** Numbers of AttributeProto.AttributeType. */
const attributeTypes = { float: 1, int: 2, string: 3, ints: 7 } as const;

export type OnnxType = keyof typeof dataTypes;

/** An attribute: integers as `int`, so that 1 can be told from 1.0. */
export type OnnxAttribute =
  | { readonly float: number }
  | { readonly int: number }
  | { readonly string: string }
  | { readonly ints: readonly number[] };

export interface OnnxNode {
  readonly type: string;
  readonly domain: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: Readonly<Record<string, OnnxAttribute>>;
}

export interface OnnxConstant {
  readonly name: string;
  readonly type: OnnxType;
  readonly shape: readonly number[];
  /** Called when its turn to be written comes, and forgotten. */
  readonly values: () => Promise<ArrayBufferView> | ArrayBufferView;
}

export interface OnnxValue {
  readonly name: string;
  readonly type: OnnxType;
  /** A string is an extent that may differ from run to run. */
  readonly shape: readonly (number | string)[];
}

export interface OnnxModel {
  readonly name: string;
  readonly nodes: readonly OnnxNode[];
  readonly constants: readonly OnnxConstant[];
  readonly inputs: readonly OnnxValue[];
  readonly outputs: readonly OnnxValue[];
}

/** Writes `path` and `path`_data; the graph appears last, when both are complete. */
export async function writeOnnx(path: string, model: OnnxModel): Promise<void> {
  const dataPath = `${path}_data`;
  const initializers: object[] = [];
  const file = openSync(`${dataPath}.tmp`, 'w');
  try {
    let end = 0;
    for (const { name, type, shape, values } of model.constants) {
      const data = await values();
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      const tensor = { name, dims: [...shape], data_type: dataTypes[type] };
      if (bytes.length < leastExternalBytes) {
        initializers.push({ ...tensor, raw_data: Uint8Array.from(bytes) });
        continue;
      }
      const offset = Math.ceil(end / alignment) * alignment;
      for (let done = 0; done < bytes.length;) {
        done += writeSync(file, bytes, done, bytes.length - done, offset + done);
      }
      end = offset + bytes.length;
      const entries = {
        location: basename(dataPath),
        offset: String(offset),
        length: String(bytes.length),
      };
      initializers.push({
        ...tensor,
        data_location: external,
        external_data: Object.entries(entries).map(([key, value]) => ({ key, value })),
      });
    }
  } finally {
    closeSync(file);
  }
  const type = loadProtobuf().parse(schema, { keepCase: true }).root.lookupType('onnx.ModelProto');
  const message = type.create({
    ir_version: irVersion,
    producer_name: 'siglip2-bench',
    opset_import: [
      { domain: '', version: opset },
      { domain: 'com.microsoft', version: 1 },
    ],
    graph: {
      name: model.name,
      node: model.nodes.map((node, i) => ({
        name: `${node.type}_${String(i)}`,
        op_type: node.type,
        domain: node.domain,
        input: [...node.inputs],
        output: [...node.outputs],
        attribute: Object.entries(node.attributes).map(attributeMessage),
      })),
      initializer: initializers,
      input: model.inputs.map(valueMessage),
      output: model.outputs.map(valueMessage),
    },
  });
  renameSync(`${dataPath}.tmp`, dataPath);
  writeFileSync(`${path}.tmp`, type.encode(message).finish());
  renameSync(`${path}.tmp`, path);
}

function attributeMessage([name, value]: readonly [string, OnnxAttribute]): object {
  if ('float' in value) return { name, type: attributeTypes.float, f: value.float };
  if ('int' in value) return { name, type: attributeTypes.int, i: value.int };
  if ('ints' in value) return { name, type: attributeTypes.ints, ints: [...value.ints] };
  return { name, type: attributeTypes.string, s: Buffer.from(value.string) };
}

function valueMessage({ name, type, shape }: OnnxValue): object {
  const dim = shape.map((extent) =>
    typeof extent === 'number' ? { dim_value: extent } : { dim_param: extent },
  );
  return { name, type: { tensor_type: { elem_type: dataTypes[type], shape: { dim } } } };
}
