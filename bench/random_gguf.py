#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a Llama-shaped model with random weights as a GGUF file, to time llama.cpp on as many bytes as Hymba-1.5B has.

    random_gguf.py OUT.gguf [--layers 33] [--width 2048] [--hidden 5632] [--heads 32] [--kv-heads 4] [--vocabulary 32000]

The defaults have 1.52 billion parameters, embeddings tied. Weights are F16; llama-quantize makes the other formats. Speed
does not depend on what the weights are. Needs the Python packages gguf and numpy.
"""
import argparse

import gguf
import numpy


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    for name, default in (("layers", 33), ("width", 2048), ("hidden", 5632), ("heads", 32), ("kv-heads", 4),
                          ("vocabulary", 32000)):
        parser.add_argument("--" + name, type=int, default=default)
    a = parser.parse_args()
    head = a.width // a.heads
    random = numpy.random.default_rng(1)

    def matrix(rows, cols):
        block = random.standard_normal((min(rows, 4096), cols), dtype=numpy.float32) / numpy.sqrt(cols)
        return numpy.resize(block.astype(numpy.float16), (rows, cols))

    writer = gguf.GGUFWriter(a.out, "llama")
    writer.add_name("random")
    writer.add_context_length(131072)
    writer.add_embedding_length(a.width)
    writer.add_block_count(a.layers)
    writer.add_feed_forward_length(a.hidden)
    writer.add_head_count(a.heads)
    writer.add_head_count_kv(a.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(a.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)]
    tokens += ["t%d" % i for i in range(a.vocabulary - len(tokens))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    kinds += [gguf.TokenType.NORMAL] * (a.vocabulary - len(kinds))
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(a.vocabulary)])
    writer.add_token_types(kinds)

    ones = numpy.ones(a.width, dtype=numpy.float32)
    writer.add_tensor("token_embd.weight", matrix(a.vocabulary, a.width))
    writer.add_tensor("output_norm.weight", ones)
    for i in range(a.layers):
        block = "blk.%d." % i
        writer.add_tensor(block + "attn_norm.weight", ones)
        writer.add_tensor(block + "ffn_norm.weight", ones)
        writer.add_tensor(block + "attn_q.weight", matrix(a.heads * head, a.width))
        writer.add_tensor(block + "attn_k.weight", matrix(a.kv_heads * head, a.width))
        writer.add_tensor(block + "attn_v.weight", matrix(a.kv_heads * head, a.width))
        writer.add_tensor(block + "attn_output.weight", matrix(a.width, a.heads * head))
        writer.add_tensor(block + "ffn_gate.weight", matrix(a.hidden, a.width))
        writer.add_tensor(block + "ffn_up.weight", matrix(a.hidden, a.width))
        writer.add_tensor(block + "ffn_down.weight", matrix(a.width, a.hidden))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
