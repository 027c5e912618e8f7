import { describeOp } from './describe_op';

describeOp('add');
