import { describeOp } from './describe_op';

describeOp('join_rows');
