"""Short chat templates with the markers of well-known families, for tests that find formats in them."""

HERMES = """\
{%- if tools %}{{ '<|im_start|>system\\nTools:\\n<tools>' }}{% for t in tools %}{{ t | tojson }}{% endfor %}\
{{ '</tools>\\nAnswer in <tool_call></tool_call>.<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}\
{{ '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}\
{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Qwen 3: thoughts, that can be switched off.
QWEN3 = HERMES.replace(
    "{{ '<|im_start|>assistant\\n' }}",
    "{{ '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
)
# A thinking-only variant: the prompt ends inside a thought.
QWEN3_THINKING = HERMES.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")

QWEN_CODER = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}{% for t in tools %}{{ '<function>' + t.function.name + '</function>' }}\
{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}{{ '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments | items %}{{ '<parameter=' + key + '>\\n' }}\
{{ value if value is string else value | tojson }}{{ '\\n</parameter>\\n' }}{% endfor %}\
{{ '</function>\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA = """\
{{- bos_token }}{%- if tools %}{{ 'Respond as {"name": function, "parameters": {}}.' }}{% for t in tools %}\
{{ t | tojson(indent=4) }}{% endfor %}{% endif %}
{%- for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}
{%- else %}{{ m.content | trim }}{% endif %}{{ '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

PYTHONIC = """\
{%- if tools %}{{ 'Answer as [name(key=value)].' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}
{%- for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
{%- if m.tool_calls %}{{ '[' }}{% for call in m.tool_calls %}{{ call.function.name + '(' }}
{%- for key, value in call.function.arguments | items %}{{ key + '=' }}{{ value | tojson }}\
{{ ', ' if not loop.last }}{% endfor %}{{ ')' }}{{ ', ' if not loop.last }}{% endfor %}{{ ']' }}
{%- else %}{{ m.content }}{% endif %}{{ '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MISTRAL = """\
{{- bos_token }}{%- for m in messages %}
{%- if m.role == 'user' %}{% if tools %}{{ '[AVAILABLE_TOOLS] ' }}{{ tools | tojson }}\
{{ '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}\
{{ ', "id": "' + call.id + '"}' }}{{ ', ' if not loop.last }}{% endfor %}{{ ']' + eos_token }}
{%- elif m.role == 'tool' %}
{%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
{{- '[TOOL_RESULTS] {"content": ' }}{{ m.content | tojson }}\
{{ ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

MISTRAL_TURNS = """\
{{- bos_token }}{%- if tools %}{{ '[AVAILABLE_TOOLS]' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}
{%- else %}{{ m.content or '' }}{% for call in m.tool_calls or [] %}\
{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}\
{{ call.function.arguments | tojson }}{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"""

R1 = """\
{{- bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content.split('</think>') | last }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"""

PLAIN = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Its calls are of a kind that nobody here knows.
STRANGE = (
    HERMES.replace('{"name": "', "<arg_key>")
    .replace('", "arguments": ', "</arg_key>")
    .replace("{{ '}\\n</tool", "{{ '\\n</tool")
)

FAMILIES = {
    "hermes": HERMES, "qwen_coder": QWEN_CODER, "llama": LLAMA, "pythonic": PYTHONIC, "mistral": MISTRAL,
    "mistral_turns": MISTRAL_TURNS,
}  # fmt: skip
